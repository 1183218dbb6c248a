from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from promotion_gate.core.errors import ArtifactError
from promotion_gate.core.policy import Policy
from promotion_gate.evidence.artifacts import VerifiedArtifacts, verify
from promotion_gate.evidence.loader import open_model
from promotion_gate.evidence.manifest import manifest_violations, parse_manifest


def change_manifest(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "MLmodel"
    manifest = yaml.safe_load(path.read_text())
    change(manifest)
    path.write_text(yaml.safe_dump(manifest))


@pytest.mark.parametrize(
    ("name", "model_format"),
    [
        ("cnn-pt2", "pt2"),
        ("residual-pt2", "pt2"),
        ("cnn-module", "torch-modules"),
        ("mlp-module", "torch-modules"),
    ],
)
def test_accepts_what_mlflow_writes(saved: Callable[[str], Path], name: str, model_format: str) -> None:
    artifacts = verify(saved(name), allow_pickle=False)
    assert artifacts.violations == ()
    assert artifacts.model_format == model_format
    assert artifacts.manifest["flavors"].keys() == {"pytorch", "python_function"}
    assert all(entry["listed"] for entry in artifacts.scan)
    assert [entry["verdict"] for entry in artifacts.scan] == ["clean"]


def test_a_foreign_pickle_is_named_and_refused_unless_allowed(saved: Callable[[str], Path]) -> None:
    refused = verify(saved("hostile-pickle"), allow_pickle=False)
    assert refused.model_format == "torch-pickle"
    assert any("cloudpickle" in violation for violation in refused.violations)
    assert "unsafe_allow_pickle" in refused.violations[-1]
    (entry,) = refused.scan
    assert not entry["listed"]
    assert entry["findings"]
    assert verify(saved("hostile-pickle"), allow_pickle=True).violations == ()


MANIFEST_ATTACKS = {
    "loader_module": lambda m: m["flavors"]["python_function"].update(loader_module="os"),
    "loader_module missing": lambda m: m["flavors"]["python_function"].pop("loader_module"),
    "code": lambda m: m["flavors"]["python_function"].update(code="code"),
    "pytorch code": lambda m: m["flavors"]["pytorch"].update(code="code"),
    "model code path": lambda m: m["flavors"]["python_function"].update(model_code_path="agent.py"),
    "pickle module": lambda m: m["flavors"]["python_function"].update(pickle_module_name="evil"),
    "data elsewhere": lambda m: m["flavors"]["pytorch"].update(model_data="../../other"),
    "data list": lambda m: m["flavors"]["pytorch"].update(model_data=["data"]),
    "sklearn": lambda m: m["flavors"].update(sklearn={"pickled_model": "model.pkl"}),
    "no pytorch": lambda m: m["flavors"].pop("pytorch"),
    "flavor text": lambda m: m["flavors"].update(pytorch="data"),
    "environment": lambda m: m["flavors"]["python_function"].update(env={"conda": "/etc/passwd"}),
    "configuration": lambda m: m["flavors"]["python_function"].update(config={"device": None, "x": 1}),
    "unknown key": lambda m: m.update(extra=1),
    "flavors missing": lambda m: m.update(flavors=None),
}


@pytest.mark.parametrize("attack", MANIFEST_ATTACKS)
def test_every_key_of_mlmodel_is_held_to_a_list(copied: Callable[[str], Path], attack: str) -> None:
    folder = copied("cnn-module")
    change_manifest(folder, MANIFEST_ATTACKS[attack])
    violations = verify(folder, allow_pickle=True).violations
    assert violations
    assert all(violation.startswith("MLmodel") for violation in violations)


@pytest.mark.parametrize(
    "content",
    [
        b"a: &x [1]\nb: *x\n",
        b"!!python/object/apply:os.system ['true']",
        b"- a\n- b\n",
        b"\xff\xfe",
        b"[" * 100_000,
        b"a: " + b"x" * (1 << 20),
    ],
)
def test_refuses_a_manifest_that_is_more_than_data(content: bytes) -> None:
    with pytest.raises(ArtifactError, match="MLmodel") as caught:
        parse_manifest(content)
    assert len(str(caught.value)) < 400


@given(
    st.recursive(st.none() | st.booleans() | st.text(), lambda x: st.dictionaries(st.text(), x) | st.lists(x))
)
def test_no_manifest_breaks_the_rules_for_it(value: object) -> None:
    manifest = value if isinstance(value, dict) else {"flavors": value}
    assert list(manifest_violations({"flavors": {"python_function": value}}, needs_flavor=True))
    assert all(isinstance(line, str) for line in manifest_violations(manifest, needs_flavor=True))


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("code/model.py", b"print()", "code that comes with the model"),
        ("data/helper.py", b"print()", "of this kind"),
        ("data/extra.pkl", b"x", "may hold a pickle"),
        ("extra_files/notes.txt", b"PK\x03\x04rest", "holds damaged zip"),
        ("extra_files/notes.json", b"\x80\x04rest", "holds pickle"),
        ("extra_files/notes.json", b"some words", "holds text"),
        ("extra_files/notes.txt", b"caf\xe9", "holds unknown data"),
        ("data/.hidden.txt", b"x", "hidden"),
        ("data/model.pth", b"x", "more than one model"),
        ("state_dict.pth", b"x", "more than one model"),
        ("data/pickle_module_info.txt", b"mlflow.pytorch.pickle_module", "has no place"),
        ("lib/x.so", b"\x7fELF", "of this kind"),
    ],
)
def test_stray_files_are_refused(
    copied: Callable[[str], Path], path: str, content: bytes, words: str
) -> None:
    folder = copied("cnn-pt2")
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_bytes(content)
    assert any(words in violation for violation in verify(folder, allow_pickle=False).violations)


def test_plain_text_beside_the_model_is_fine(copied: Callable[[str], Path]) -> None:
    folder = copied("cnn-pt2")
    (folder / "extra_files").mkdir()
    (folder / "extra_files" / "README.md").write_text("# a model")
    assert verify(folder, allow_pickle=False).violations == ()


def refused(artifacts: VerifiedArtifacts, policy: Policy, marker: Path) -> None:
    """Not loaded, and nothing ran on the way."""
    assert artifacts.violations
    with pytest.raises(ArtifactError, match="refused"):
        open_model(artifacts, policy, class_count=None, log=lambda line: None)
    assert not marker.exists()


def test_the_payload_of_these_tests_works(payload: bytes, marker: Path, tmp_path: Path) -> None:
    import torch

    (tmp_path / "x.pth").write_bytes(payload)
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("path", ["data/model.pth", "data/state_dict.pth"])
def test_a_payload_in_a_checkpoint_never_runs(
    copied: Callable[[str], Path], policy: Callable[..., Policy], payload: bytes, marker: Path, path: str
) -> None:
    folder = copied("cnn-module")
    (folder / "data" / "model.pth").unlink()
    (folder / "data" / "pickle_module_info.txt").unlink()
    (folder / path).write_bytes(payload)
    (folder / "data" / "architecture.json").write_text('{"layers": [{"type": "ReLU"}]}')
    refused(verify(folder, allow_pickle=False), policy(), marker)


def test_a_payload_hidden_in_a_good_checkpoint_never_runs(
    copied: Callable[[str], Path],
    policy: Callable[..., Policy],
    marker: Path,
    payload: bytes,
    edit_archive: Callable[..., None],
) -> None:
    import io
    import zipfile

    stream = zipfile.ZipFile(io.BytesIO(payload)).read("archive/data.pkl")
    folder = copied("cnn-module")
    edit_archive(folder / "data/model.pth", {"data.pkl": lambda good: stream[:-1] + b"0" + good[2:]})
    refused(verify(folder, allow_pickle=False), policy(), marker)


def test_a_bare_pickle_never_runs(
    copied: Callable[[str], Path], policy: Callable[..., Policy], marker: Path
) -> None:
    folder = copied("cnn-module")
    (folder / "data/model.pth").write_bytes(pickle.dumps(marker.touch))
    refused(verify(folder, allow_pickle=False), policy(), marker)


def test_pickle_module_info_may_name_the_stock_module_only(
    copied: Callable[[str], Path], policy: Callable[..., Policy], marker: Path
) -> None:
    folder = copied("cnn-module")
    (folder / "data/pickle_module_info.txt").write_text("code.evil")
    artifacts = verify(folder, allow_pickle=True)
    refused(artifacts, policy("unsafe_allow_pickle = true"), marker)


PT2_PICKLES = {
    "sample inputs": ({"data/sample_inputs/model.pt": "payload"}, {}),
    "opaque constant": ({}, {"data/constants/opaque_obj_0": "payload"}),
    "custom object": ({}, {"data/constants/custom_obj_0": "payload"}),
    "legacy weights": ({}, {"data/weights/model.pt": "payload"}),
    "compiled library": ({}, {"data/aotinductor/model/x.so": "payload"}),
    "second model": ({}, {"models/other.json": "payload"}),
}


@pytest.mark.parametrize("place", PT2_PICKLES)
def test_a_payload_in_an_exported_program_never_runs(
    copied: Callable[[str], Path],
    policy: Callable[..., Policy],
    payload: bytes,
    marker: Path,
    edit_archive: Callable[..., None],
    place: str,
) -> None:
    folder = copied("cnn-pt2")
    changes, additions = PT2_PICKLES[place]
    edit_archive(
        folder / "data/model.pt2", dict.fromkeys(changes, payload), dict.fromkeys(additions, payload)
    )
    refused(verify(folder, allow_pickle=True), policy("unsafe_allow_pickle = true"), marker)


def test_a_weight_marked_as_pickle_is_refused(
    copied: Callable[[str], Path],
    policy: Callable[..., Policy],
    payload: bytes,
    marker: Path,
    edit_archive: Callable[..., None],
) -> None:
    folder = copied("cnn-pt2")

    def mark(content: bytes) -> bytes:
        config = json.loads(content)
        config["config"]["0.weight"]["use_pickle"] = True
        return json.dumps(config).encode()

    edit_archive(
        folder / "data/model.pt2",
        {"data/weights/model_weights_config.json": mark, "data/weights/weight_0": payload},
    )
    refused(verify(folder, allow_pickle=True), policy(), marker)


def first_node(program: dict) -> dict:
    return program["graph_module"]["graph"]["nodes"][0]


def shape_of_input(program: dict) -> dict:
    return program["graph_module"]["graph"]["tensor_values"]["input"]["sizes"][0]["as_expr"]


def rename_input(program: dict, name: str) -> None:
    program["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"] = name


RUNNING_JSON = {
    "operator": lambda p: first_node(p).update(target="torch.hub.load"),
    "operator of os": lambda p: first_node(p).update(target="torch.os.system"),
    "operator that reads files": lambda p: first_node(p).update(target="torch.ops.aten.from_file.default"),
    "foreign operator": lambda p: first_node(p).update(target="torch.ops.evil.run.default"),
    "expression": lambda p: shape_of_input(p).update(expr_str="__import__('os').system('true')"),
    "expression by attribute": lambda p: shape_of_input(p).update(expr_str="Symbol.__class__"),
    "expression by text": lambda p: shape_of_input(p).update(expr_str="Symbol('__import__(0)')"),
    "expression by name": lambda p: shape_of_input(p).update(expr_str="exec(Symbol('s0'))"),
    "guard": lambda p: p.update(guards_code=["__import__('os').system('true') == 0"]),
    "guard by attribute": lambda p: p.update(guards_code=["L['x'].__class__ == 1"]),
    "placeholder": lambda p: rename_input(p, "x=__import__('os').system('true')"),
    "tree": lambda p: p["graph_module"]["module_call_graph"][0]["signature"].update(
        in_spec='[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]'
    ),
    "named tuples": lambda p: p["graph_module"].update(treespec_namedtuple_fields={"os.system": []}),
}


@pytest.mark.parametrize("place", RUNNING_JSON)
def test_an_exported_program_that_would_run_code_without_a_pickle_is_refused(
    copied: Callable[[str], Path],
    policy: Callable[..., Policy],
    marker: Path,
    edit_program: Callable[..., None],
    place: str,
) -> None:
    folder = copied("cnn-pt2")
    edit_program(folder / "data/model.pt2", RUNNING_JSON[place])
    refused(verify(folder, allow_pickle=True), policy(), marker)


def test_guards_on_shapes_are_fine(copied: Callable[[str], Path], edit_program: Callable[..., None]) -> None:
    folder = copied("cnn-pt2")
    guards = ["L['input'].size()[2] >= 3", "((-2) + L['input'].size()[3]) != 1"]
    edit_program(folder / "data/model.pt2", lambda program: program.update(guards_code=guards))
    assert verify(folder, allow_pickle=False).violations == ()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip" * 100])
@pytest.mark.parametrize("name", ["cnn-pt2", "cnn-module"])
def test_a_damaged_model_is_a_violation_not_a_crash(
    copied: Callable[[str], Path], name: str, content: bytes
) -> None:
    folder = copied(name)
    (folder / ("data/model.pt2" if name == "cnn-pt2" else "data/model.pth")).write_bytes(content)
    assert any("its name says PyTorch" in line for line in verify(folder, allow_pickle=False).violations)


def test_bytes_before_an_archive_are_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("cnn-pt2")
    path = folder / "data/model.pt2"
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    assert any("holds script" in violation for violation in verify(folder, allow_pickle=False).violations)


def test_violations_are_one_printable_line_each(copied: Callable[[str], Path]) -> None:
    folder = copied("cnn-pt2")
    change_manifest(folder, lambda m: m.update({"evil\n\x1b[31mkey": 1}))
    (violation,) = verify(folder, allow_pickle=False).violations
    assert violation.isprintable()
