"""Hostile model folders: none runs, none crashes or hangs the gate, and each ends in one clear line.

The corpus is ``hostile/corpus.py``. ``pytest -s`` prints where each was stopped.
"""

import contextlib
import importlib.util
import os
import pickle
import re
import shutil
import sys
import zlib
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from promotion_gate.core.keys import own_keyring
from promotion_gate.core.policy import parse_policy
from promotion_gate.core.types import ArtifactFile, ModelRef, Outcome, Status
from promotion_gate.evidence import kinds, pickles, sandbox
from promotion_gate.evidence.archive import _TENSOR_GLOBALS
from promotion_gate.evidence.artifacts import verify
from promotion_gate.evidence.digest import listed_files
from promotion_gate.gate import run_gate, verdict_line
from promotion_gate.registry.memory import MemoryRegistry, MemoryStore
from promotion_gate.registry.mlflow import MlflowRegistry
from promotion_gate.transition import Actor

_path = Path(__file__).parent / "hostile" / "corpus.py"
_spec = importlib.util.spec_from_file_location("hostile_corpus", _path)
corpus = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = corpus
_spec.loader.exec_module(corpus)

CORPUS = corpus.CORPUS
CARELESS = [name for name, hostile in CORPUS.items() if hostile.careless]
REF = ModelRef("signs", 1)
POLICY = """\
version = 1
[data.holdout]
path = 'nowhere'
[checks.per-class.bounds.accuracy]
min = 0.9
[input]
layout = "NCHW"
height = 2
width = 2
channels = 3
scale = 255
[sandbox]
memory_gib = 1
seconds = 60
"""


class FolderRegistry(MemoryRegistry):
    """Hands out a folder as it stands: links, pipes and odd names included."""

    def __init__(self, store, source):
        super().__init__(store)
        self.source = source

    def download(self, ref, folder):
        for entry in self.source.iterdir():
            entry.rename(folder / entry.name)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "model"
    corpus.good_model(folder)
    return folder


@pytest.fixture(scope="module")
def built(good, tmp_path_factory):
    """A fresh hostile folder by name, and its canary."""

    def build(name):
        home = tmp_path_factory.mktemp("hostile")
        folder = Path(shutil.copytree(good, home / "model"))
        CORPUS[name].build(folder, home / "canary")
        return folder, home / "canary"

    return build


@pytest.fixture(scope="module")
def ended(built, tmp_path_factory):
    """How the gate's whole line ends on a hostile folder: the run and the canary; each is run once."""
    keys = own_keyring(tmp_path_factory.mktemp("keys") / "signing-key.pem")
    runs = {}

    def end(name):
        if name not in runs:
            folder, canary = built(name)
            runs[name] = gated(folder, keys), canary
        return runs[name]

    return end


def gated(folder, keys, policy=POLICY):
    store = MemoryStore()
    store.add_version(REF, {})
    registry = FolderRegistry(store, folder)
    actor = Actor("ada", "ship", keys, lambda: store.clock)
    return run_gate(registry, REF.uri, parse_policy(policy), actor=actor)


def stopped_by(run):
    finding = run.report.finding("artifacts")
    return "files" if finding.metrics.get("violations") else "sandbox"


def test_the_corpus_is_large():
    assert len(CORPUS) >= 40
    assert len(CARELESS) >= 30


def test_the_good_model_that_all_are_built_from_has_no_violation(good):
    artifacts = verify(good, allow_pickle=False)
    assert artifacts.violations == ()
    assert artifacts.model_format == "torch-modules"
    assert {file.path: file.kind for file in artifacts.files} == {
        "MLmodel": "text",
        "conda.yaml": "text",
        "data/model.pth": "PyTorch checkpoint",
        "python_env.yaml": "text",
        "requirements.txt": "text",
    }
    (entry,) = artifacts.scan
    assert entry["listed"]
    assert "torch.nn.modules.linear.Linear" in entry["globals"]
    assert "torch.nn.modules.linear.Linear" in entry["refused_by_torch"]


@pytest.mark.parametrize("name", CARELESS)
def test_the_payload_works_when_it_is_loaded_carelessly(built, name):
    folder, canary = built(name)
    assert not canary.exists()
    with contextlib.suppress(Exception):  # what comes after the payload need not make sense
        CORPUS[name].careless(folder)
    assert canary.exists()


@pytest.mark.parametrize("name", CORPUS)
def test_nothing_runs_and_one_clear_line_says_why(ended, name):
    run, canary = ended(name)
    hostile = CORPUS[name]
    assert not canary.exists()
    assert run.verdict.outcome is (Outcome.HOLD if hostile.loads else Outcome.REJECT)
    line = verdict_line(run.verdict)
    told = [line, *run.report.finding("artifacts").detail["violations"]]
    assert re.search(hostile.words, "; ".join(told)), told
    assert line.isprintable()
    assert len(line) < 800
    assert "Traceback" not in line
    assert stopped_by(run) == ("sandbox" if hostile.loads else "files")


def test_the_table(ended):
    stopped = {name: stopped_by(ended(name)[0]) for name in CORPUS}
    for name, where in stopped.items():
        print(f"{name:52.52} {where:8} {verdict_line(ended(name)[0].verdict)[:110]}")
    count = list(stopped.values()).count
    print(f"{len(stopped)} artifacts: {count('files')} by their files, {count('sandbox')} by the sandbox")
    assert count("files") >= 40


def test_what_the_scanner_alone_would_have_said(built, good):
    """Printed with ``-s``: it has no opinion on payloads outside pickles, so it cannot decide alone."""
    from modelaudit_picklescan import PickleScanner, ScanOptions

    scanner = PickleScanner(ScanOptions(timeout_s=10))
    before = {path: (good / path).read_bytes() for path, _ in listed_files(good)}
    told = {"warned": 0, "clean": 0, "silent": 0}
    for name in CARELESS:
        folder, _ = built(name)
        verdicts = {
            scanner.scan_file(folder / path, enrich_call_graph=False).verdict.value
            for path, _ in listed_files(folder)
            if before.get(path) != (folder / path).read_bytes()
        }
        warned = verdicts & {"suspicious", "malicious"}
        said = "warned" if warned else "clean" if verdicts == {"clean"} else "silent"
        told[said] += 1
        print(f"{name:52.52} {said:8} {sorted(verdicts)}")
    print(told)
    assert told["warned"] < len(CARELESS)


@pytest.mark.skipif(
    not sandbox._works(sandbox.Confinement("bubblewrap")), reason="bubblewrap does not work on this host"
)
def test_where_the_policy_allows_pickles_the_sandbox_holds_them(good, tmp_path):
    folder = Path(shutil.copytree(good, tmp_path / "model"))
    canary = tmp_path / "canary"
    parts = [build(f"{canary}") for name, build in corpus.pickles.OPCODES.items() if "protocol" in name]
    assert len(parts) >= 6
    everything = b"\x80\x04(" + b"".join(part[:-1].removeprefix(b"\x80\x04") for part in parts[:4]) + b"l."
    corpus.put(folder, corpus.MODEL, corpus.checkpoint(everything))
    keys = own_keyring(tmp_path / "signing-key.pem")
    run = gated(folder, keys, "unsafe_allow_pickle = true\n" + POLICY)
    assert run.verdict.outcome is Outcome.HOLD
    assert run.report.finding("model").status is Status.INCONCLUSIVE
    assert not canary.exists()


# What the corpus does not reach.


def test_no_name_on_the_list_of_tensors_is_one_that_torch_refuses():
    """So that nobody has to import torch to say so."""
    stream = b"".join(b"c%s\nN" % name.replace(" ", "\n").encode() for name in sorted(_TENSOR_GLOBALS))
    refused, note = pickles.refused_by_torch(
        b"\x80\x02" + stream.replace(b"builtins\n", b"__builtin__\n") + b"N."
    )
    assert (set(refused), note) == (set(), "")


def test_names_in_a_pickle_are_followed_through_the_memo():
    told = {name: pickles.named_globals(build("/x")) for name, build in corpus.pickles.OPCODES.items()}
    assert "os.mkdir" in told["STACK_GLOBAL through the memo"]
    assert "os.mkdir" in told["INST"]
    assert pickles.COMPUTED in told["STACK_GLOBAL of a computed name"]
    assert all(names for names in told.values())


@pytest.mark.parametrize(
    "text",
    [
        "class\nid\nRed\n",
        "channels:\n- conda-forge\n",
        "torch==2.13.0\n",
        "I am text.\n",
        "PyTorch model of signs\nSee the card.\n",
        "cos\nsin\n",
        "{}",
        ".",
    ],
)
def test_plain_text_is_no_pickle(tmp_path, text):
    (tmp_path / "x").write_text(text)
    assert kinds.content_kind(tmp_path / "x") in (kinds.TEXT, kinds.JSON)


def scanned(folder, name, content):
    (folder / name).write_bytes(content)
    kind = kinds.content_kind(folder / name)
    return [entry["source"] for entry in pickles.scan_files(folder, [ArtifactFile(name, 0, "", kind)])]


def test_a_member_that_cannot_be_read_does_not_hide_the_next(tmp_path):
    members = {"archive/broken.gz": b"\x1f\x8bno gzip", "archive/evil": pickle.dumps(corpus.Payload("/x"))}
    found = scanned(tmp_path, "x.pth", corpus.checkpoint(pickle.dumps({}, protocol=2), **members))
    assert found == ["x.pth:archive/data.pkl", "x.pth:archive/broken.gz", "x.pth:archive/evil"]


def test_a_tensor_that_begins_like_a_pickle_is_none_unless_it_calls(tmp_path):
    stream = pickle.dumps({}, protocol=2)
    plain = corpus.checkpoint(stream, **{"archive/data/0": b"\x80\x02" + bytes(range(200))})
    hidden = corpus.checkpoint(stream, **{"archive/data/0": pickle.dumps(corpus.Payload("/x"))})
    assert scanned(tmp_path, "x.pth", plain) == ["x.pth:archive/data.pkl"]
    assert scanned(tmp_path, "x.pth", hidden)[1:] == ["x.pth:archive/data/0"]


def test_what_is_packed_too_often_or_too_large_is_told(tmp_path, monkeypatch):
    content = pickle.dumps(1)
    for _ in range(pickles.MAX_DEPTH + 2):
        content = zlib.compress(content)
    (tmp_path / "x.joblib").write_bytes(content)
    monkeypatch.setattr(pickles, "MAX_PICKLE_BYTES", 1 << 20)
    (entry,) = pickles.scan_files(tmp_path, [ArtifactFile("x.joblib", 0, "", kinds.ZLIB)])
    assert "packed more than" in entry["findings"][0]["message"]


def test_a_directory_too_large_to_read_is_refused_unread(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(corpus.checkpoint(pickle.dumps({})))
    monkeypatch.setattr(kinds, "MAX_DIRECTORY_BYTES", 100)
    assert kinds.content_kind(tmp_path / "x") == kinds.DAMAGED_ZIP


def test_a_link_in_a_local_store_is_refused_before_it_is_followed(good, tmp_path):
    """MLflow's own download would copy what the link points to."""
    folder = Path(shutil.copytree(good, tmp_path / "model"))
    (folder / "data/notes.txt").symlink_to("/etc/hostname")
    registry = MlflowRegistry(f"sqlite:///{tmp_path}/mlflow.db")
    client = registry._client
    client.create_registered_model("signs")
    client.create_model_version("signs", folder.as_uri(), await_creation_for=0)
    target = tmp_path / "copy"
    target.mkdir()
    with pytest.raises(Exception, match="is a link, device or pipe"):
        registry.download(REF, target)
    assert list(target.iterdir()) == []
