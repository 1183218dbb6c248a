import pytest

from promotion_gate.provenance.scan.entry import HOLE, Entry, Known, Unreadable


def one(entries):
    (entry,) = entries
    assert isinstance(entry, Entry), entry
    return entry


@pytest.mark.parametrize(
    "code",
    [
        "import torchvision as x\nx.datasets.MNIST('d')",
        "from torchvision.datasets import *\nMNIST('d')",
        "from torchvision import datasets\nm = datasets\nm.MNIST('d')",
        "import torchvision\nload = torchvision.datasets.MNIST\nload('d')",
        "import torchvision\ngetattr(torchvision.datasets, 'MN' + 'IST')('d')",
        "import importlib\nimportlib.import_module('torchvision.datasets').MNIST('d')",
        "__import__('torchvision.datasets', fromlist=['x']).MNIST('d')",
        "import torchvision\nx = {'a': torchvision.datasets.MNIST}\nx['a']('d')",
        "import functools, torchvision\nfunctools.partial(torchvision.datasets.MNIST, 'd')()",
        "import torchvision\nclass A:\n  def __init__(self):\n    self.t = torchvision.datasets\n"
        "  def f(self):\n    self.t.MNIST()",
        "import torchvision\nf = lambda: torchvision.datasets.MNIST('d')",
        "import torchvision.datasets as d\n[d.MNIST(x) for x in 'ab']",
        "try:\n  from torchvision.datasets import MNIST\nexcept ImportError:\n  MNIST = None\nMNIST('d')",
        "from torchvision.datasets import MNIST",
        "exec('import torchvision; torchvision.datasets.MNIST()')",
    ],
)
def test_a_loader_is_known_by_any_of_its_names(code, entries_of):
    entry = one(entries_of(code))
    assert entry.loader == "torchvision.datasets.MNIST"
    assert entry.dataset == "MNIST"


@pytest.mark.parametrize(
    "code",
    [
        "def f(torchvision):\n  torchvision.datasets.MNIST('d')",
        "from ours import torchvision\ntorchvision.datasets.MNIST('d')",
        "from .datasets import load_dataset\nload_dataset('x')",
        "import torchvision\nisinstance(x, torchvision.datasets.MNIST)",
        "import torchvision\nx: torchvision.datasets.MNIST = None",
        "import torchvision\n'torchvision.datasets.MNIST()'",
        "from torchvision.datasets import *\nException('d'); Warning",
    ],
)
def test_a_look_alike_is_not(code, entries_of):
    assert entries_of(code) == []


@pytest.mark.parametrize(
    ("argument", "url"),
    [
        ("'https://h/a.csv'", "https://h/a.csv"),
        ("BASE + '/a.csv'", "https://h/a.csv"),
        ("f'{BASE}/{name}.csv'", f"https://h/{HOLE}.csv"),
        ("'%s/a.csv' % BASE", "https://h/a.csv"),
        ("'{}/a.csv'.format(BASE)", "https://h/a.csv"),
        ("'/'.join([BASE, 'a.csv'])", "https://h/a.csv"),
        ("urljoin('https://h/b/', 'a.csv')", "https://h/b/a.csv"),
        ("os.environ.get('X', 'https://h/a.csv')", "https://h/a.csv"),
        ("PATHS['web']", "https://h/a.csv"),
        ("args.data_url", HOLE),
    ],
)
def test_an_address_is_put_together_from_constants(argument, url, entries_of):
    code = (
        "import os, pandas as pd\nfrom urllib.parse import urljoin\nBASE = 'https://h'\n"
        f"PATHS = {{'web': BASE + '/a.csv', 'here': 'a.csv'}}\npd.read_csv(filepath_or_buffer={argument})"
    )
    assert one(entries_of(code)).url == url


@pytest.mark.parametrize(
    "argument", ["'a.csv'", "path", "f'{folder}/a.csv'", "PATHS['here']", "io.StringIO('a')"]
)
def test_a_reader_of_local_files_is_no_entry(argument, entries_of):
    assert entries_of(f"import io, pandas as pd\nPATHS = {{'here': 'a.csv'}}\npd.read_csv({argument})") == []


@pytest.mark.parametrize(
    ("call", "pinned", "hashed"),
    [
        ("datasets.load_dataset('a/b')", Known.NO, Known.NO),
        ("datasets.load_dataset('a/b', revision='main')", Known.NO, Known.NO),
        ("datasets.load_dataset('a/b', revision='" + "a" * 40 + "')", Known.YES, Known.NO),
        ("datasets.load_dataset('a/b', revision=rev)", Known.UNKNOWN, Known.NO),
        ("datasets.load_dataset('a/b', **options)", Known.UNKNOWN, Known.NO),
        ("tensorflow_datasets.load('mnist:3.0.1')", Known.YES, Known.YES),
        ("tensorflow_datasets.load('mnist')", Known.NO, Known.YES),
        ("pooch.retrieve('https://h/a.zip', known_hash='sha256:" + "0" * 64 + "')", Known.YES, Known.YES),
        ("pooch.retrieve('https://h/a.zip', known_hash=None)", Known.NO, Known.NO),
        ("pooch.retrieve('https://h/v1.2/a.zip', None)", Known.YES, Known.NO),
        ("pooch.retrieve('https://h/latest/a.zip', hashes[x])", Known.NO, Known.UNKNOWN),
        ("keras.utils.get_file('a', 'https://h/a', file_hash=H)", Known.YES, Known.YES),
        ("torchvision.datasets.MNIST('d')", Known.YES, Known.YES),
        ("seaborn.load_dataset('tips')", Known.NO, Known.NO),
        ("torch.hub.load('a/b:v1.0', 'm')", Known.YES, Known.NO),
        ("torch.hub.load('a/b:main', 'm')", Known.NO, Known.NO),
    ],
)
def test_pinned_and_hash_checked(call, pinned, hashed, entries_of):
    module = call.split(".")[0]
    entry = one(entries_of(f"import {module}\nH = 'abc'\n{call}"))
    assert (entry.pinned.known, entry.hashed.known) == (pinned, hashed)


def test_it_says_why_a_request_is_taken_for_data(entries_of):
    written = "import requests\ndef f(url):\n    open('a', 'wb').write(requests.get(url).content)"
    assert "a file is written" in one(entries_of(written)).context
    assert entries_of("import requests\ndef f(url):\n    return requests.get(url).ok") == []


@pytest.mark.parametrize(
    "code",
    [
        "x = x + x\ny = x * 2\nimport pandas\npandas.read_csv(x)",
        "import pandas\n"
        + "\n".join(f"x{i} = x{i + 1} + x{i + 1}" for i in range(60))
        + "\npandas.read_csv(x0)",
        "import torchvision\na = b\nb = a\na.datasets.MNIST()",
        "import requests\ns = [s for s in s]\nfor s in s: s = s[s]\nrequests.get(s)",
    ],
)
def test_names_that_go_in_circles_or_double_end(code, entries_of):
    entries_of(code)


def test_depth_is_a_finding_and_not_a_crash(entries_of):
    deep = entries_of("import torchvision\nx = " + "(" * 500 + ")" * 500)
    assert isinstance(deep[0], Unreadable)
    chained = "import torchvision\nx = torchvision" + ".a()" * 5000
    assert all(isinstance(e, Unreadable) for e in entries_of(chained))
    entries_of("import torchvision\nx = " + "+".join(["'a'"] * 3000))


@pytest.mark.parametrize("content", [b"def f(:\n", b"\xff\xfe\x00x", b"# coding: nonsense\n", b"x = 1\x00"])
def test_what_is_no_python_is_told(content, entries_of):
    (found,) = entries_of(content)
    assert isinstance(found, Unreadable)


def test_source_in_another_encoding_is_read_by_its_mark(entries_of):
    content = "# coding: latin-1\nimport torchvision\né = torchvision.datasets.MNIST('d')\n".encode("latin-1")
    assert one(entries_of(content)).column == 5
