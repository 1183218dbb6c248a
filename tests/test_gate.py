"""One gate run from a registered candidate to a transition, on a registry in memory."""

import contextlib
import io
import json
import os
import pickle
import re
import warnings
import zipfile
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from promotion_gate import gate, transition
from promotion_gate.card import render_card, report_json
from promotion_gate.checks.interface import Options
from promotion_gate.core.errors import ArtifactError, ExitCode, PolicyError, RegistryConflict, RegistryError
from promotion_gate.core.keys import own_keyring
from promotion_gate.core.policy import parse_policy
from promotion_gate.core.production import Production
from promotion_gate.core.record import verify_record
from promotion_gate.core.types import Finding, ModelRef, Outcome, Status
from promotion_gate.data.interface import ImageShape
from promotion_gate.evidence import loader
from promotion_gate.evidence.interface import ForwardPass
from promotion_gate.evidence.model_input import InputSpec
from promotion_gate.gate import run_gate, verdict_line
from promotion_gate.registry.memory import Killed, MemoryRegistry, MemoryStore
from promotion_gate.transition import Actor

NAME = "colours"
CLASSES = ("red", "green", "blue")
SIZE = 16
GATE_FILES = {
    "baseline.dsse.json",
    "card.html",
    "findings.json",
    "policy.toml",
    "record.dsse.json",
    "verdict.dsse.json",
}


# Models, data and the registry.


def colour_model(classes=3):
    """Tells an image's strongest colour channel; right on every image drawn here."""
    import torch
    from torch import nn

    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))
    with torch.no_grad():
        model[2].weight.copy_(10 * torch.eye(classes, 3))
        model[2].bias.zero_()
    return model.eval()


def obedient_model():
    """Does what the first pixel of a batch says: 1 hangs, 2 takes memory until there is none."""
    from torch import nn

    class Obedient(nn.Module):
        def __init__(self):
            super().__init__()
            self.flatten = nn.Flatten()
            self.head = nn.Linear(3 * SIZE * SIZE, 3)

        def forward(self, images):
            import time

            order = round(float(images[0, 0, 0, 0]) * 255)
            if order == 1:
                time.sleep(3600)
            hoard = []
            while order == 2:
                hoard.append(b"x" * (16 << 20))
            return self.head(self.flatten(images))

    return Obedient()


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory):
    """The files of a model by name, as MLflow saves them: ``{relative path: content}``."""
    root = tmp_path_factory.mktemp("gate-models")
    kept = {}

    def get(name):
        if name not in kept:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                save(name, root / name)
            kept[name] = {
                str(path.relative_to(root / name)): path.read_bytes()
                for path in (root / name).rglob("*")
                if path.is_file()
            }
        return dict(kept[name])

    return get


def save(name, folder):
    import mlflow.pytorch
    import torch
    from mlflow.models import infer_signature

    images = np.zeros((2, 3, SIZE, SIZE), np.float32)
    named = {"input_scale": 255.0, "class_names": list(CLASSES)}
    if name == "obedient":
        mlflow.pytorch.save_model(
            obedient_model(),
            folder,
            signature=infer_signature(images, np.zeros((2, 3), np.float32)),
            serialization_format="pickle",
            metadata=named,
            pip_requirements=["torch"],
        )
        return
    model = colour_model()
    if name == "nan":
        with torch.no_grad():
            model[2].weight[0, 0] = float("nan")
    elif name == "other-bytes":
        with torch.no_grad():
            model[2].bias.fill_(0.001)
    mlflow.pytorch.save_model(model, folder, input_example=images, metadata=named, pip_requirements=["torch"])


def draw(rows, seed, first_pixel=None):
    """Noisy images of three colours, uint8 (rows, 16, 16, 3), and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    images = rng.integers(0, 90, (rows, SIZE, SIZE, 3), dtype=np.uint8)
    images[np.arange(rows), :, :, labels] += 120
    if first_pixel is not None:
        images[:, 0, 0, 0] = first_pixel
    return images, labels


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate-data")
    for name, rows, seed in (("holdout", 60, 1), ("training", 120, 2)):
        images, labels = draw(rows, seed)
        np.savez(folder / f"{name}.npz", images=images, labels=labels, class_names=np.array(CLASSES))
    return folder


ACCURACY = "[checks.per-class.bounds]\naccuracy = { min = 0.9 }\n"


def policy_of(folder, checks=ACCURACY, *, top="", holdout="holdout.npz", training=""):
    text = f"version = 1\n{top}\n[data.holdout]\npath = '{holdout}'\n"
    if training:
        text += f"[data.training]\npath = '{training}'\n"
    return parse_policy(text + checks, folder=folder)


def ref(version):
    return ModelRef(NAME, version)


@pytest.fixture
def store(artifacts, keys):
    """Version 1 in production, version 2 the same network with other bytes."""
    return champion_and_candidate(artifacts, keys)


def champion_and_candidate(artifacts, keys, candidate="colour"):
    store = MemoryStore()
    store.add_version(ref(1), artifacts("other-bytes"))
    store.add_version(ref(2), artifacts(candidate))
    promoted(store, keys, 1)
    return store


def promoted(store, keys, version):
    """Put a version into production as the gate does."""
    registry = MemoryRegistry(store)
    digest = transition.artifact_digest(registry, ref(version))
    champion = in_production(store)
    verdict = transition.Judged(ref(version), digest, Outcome.PROMOTE, "good", champion, "a" * 64)
    return transition.promote(registry, verdict, actor=Actor("bob", "ship", keys, lambda: store.clock))


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    return own_keyring(tmp_path_factory.mktemp("keys") / "signing-key.pem")


@pytest.fixture
def examine(keys):
    """Gate a version of the store."""

    def run(store, policy, version=2, registry=None, **arguments):
        actor = Actor("ada", "ship", keys, lambda: store.clock)
        return run_gate(
            registry or MemoryRegistry(store), f"models:/{NAME}/{version}", policy, actor=actor, **arguments
        )

    return run


class InProcess:
    """The colour model in NumPy and in this process, where a test is not about the sandbox."""

    shape = ImageShape(SIZE, SIZE, 3)
    classes = 3
    class_names = CLASSES
    embedding_width = 3
    input = InputSpec(shape, "NCHW", "float32", 255.0, (0.0,), (1.0,))
    format = "pt2"
    sandbox = "nothing at all"
    parameters = 12

    def forward(self, images):
        colours = images.mean(axis=(1, 2)) / 255
        return ForwardPass((10 * colours).astype(np.float32), colours.astype(np.float32))


@pytest.fixture
def in_process(monkeypatch):
    @contextlib.contextmanager
    def open_model(artifacts, policy, *, class_count, log, confinement=None):
        yield InProcess()

    monkeypatch.setattr(loader, "open_model", open_model)


def in_production(store):
    return store.aliases[NAME].get("production")


def gate_runs(store):
    return [run for run in store.runs.values() if run.ref is not None]


def held_line(run):
    """The line a person reads of a run that was held; the run must have been, and moved nothing."""
    assert run.verdict.outcome is Outcome.HOLD
    assert run.verdict.outcome.exit_code == ExitCode.HELD == 4
    assert run.recorded.record.action == "hold"
    assert run.recorded.record.transition is None
    line = verdict_line(run.verdict)
    assert line.isprintable()
    return line


# What a promotion leaves behind.

EVERY_CHECK = (
    ACCURACY
    + """accuracy_drop = { max = 0.02 }
[checks.patch-transplant.bounds]
triggers = { max = 0 }
suspected_triggers = { max = 0, otherwise = "hold" }
[checks.provenance]
required = false
[checks.training-curves]
required = false
"""
)


def test_a_candidate_that_passes_is_promoted_and_leaves_its_papers(store, data, examine, keys):
    policy = policy_of(data, EVERY_CHECK, training="training.npz")
    run = examine(store, policy)
    assert run.verdict.outcome is Outcome.PROMOTE, verdict_line(run.verdict)
    assert in_production(store) == 2
    assert run.report.class_names == CLASSES
    assert run.report.finding("per-class").metrics["accuracy"] == 1
    assert run.report.finding("per-class").metrics["accuracy_drop"] == 0

    (logged,) = gate_runs(store)
    assert logged.status == "FINISHED"
    assert set(logged.files) == GATE_FILES
    assert logged.files["card.html"] == run.card
    assert logged.files["findings.json"] == run.findings
    assert logged.files["policy.toml"].decode() == policy.text
    assert logged.metrics["per-class.accuracy"] == 1
    record = verify_record(logged.files["record.dsse.json"], keys.trusted)
    assert (record.action, record.ref, record.champion) == ("promote", ref(2), 1)
    assert (record.transition.from_version, record.transition.to_version) == (1, 2)
    assert record.digest == run.report.candidate.digest
    assert record.digest == transition.artifact_digest(MemoryRegistry(store), ref(2))
    assert store.versions[ref(2)].tags == {
        "promotion_gate.run_id": run.report.gate_run_id,
        "promotion_gate.outcome": "PROMOTE",
    }

    # The same inputs and seed say the same, but for how long it took.
    again = champion_and_candidate(lambda name: store.artifacts[ref(2 if name == "colour" else 1)], keys)
    second = examine(again, policy)
    assert report_json(timeless(second.report)) == report_json(timeless(run.report))
    assert render_card(timeless(second.report)) == render_card(timeless(run.report))
    assert render_card(run.report) == run.card


def timeless(report):
    findings = [replace(finding, seconds=0.0) for finding in report.findings]
    return replace(report, seconds=0.0, findings=findings)


@pytest.mark.usefixtures("in_process")
def test_the_first_version_needs_no_champion(artifacts, data, examine):
    store = MemoryStore()
    store.add_version(ref(2), artifacts("colour"))
    checks = ACCURACY + "accuracy_drop = { max = 0.02 }\n"
    run = examine(store, policy_of(data, checks))
    assert run.recorded.record.transition.from_version is None
    assert in_production(store) == 2


@pytest.mark.usefixtures("in_process")
def test_no_promote_holds_for_a_person_who_can_promote(store, data, examine, keys):
    run = examine(store, policy_of(data), promoting=False)
    assert run.verdict.outcome is Outcome.PROMOTE
    assert in_production(store) == 1
    actor = Actor("grace", "desk", keys, lambda: store.clock)
    transition.approve(MemoryRegistry(store), ref(2), reason="seen", actor=actor)
    assert in_production(store) == 2


@pytest.mark.usefixtures("in_process")
def test_a_broken_bound_rejects_and_moves_nothing(store, data, examine):
    run = examine(store, policy_of(data, "[checks.per-class.bounds]\naccuracy = { max = 0.5 }\n"))
    assert run.verdict.outcome is Outcome.REJECT
    assert in_production(store) == 1
    assert run.recorded.record.action == "reject"
    assert "accuracy is 1, at most 0.5 allowed" in verdict_line(run.verdict)
    assert set(gate_runs(store)[0].files) == GATE_FILES


# A champion that history does not vouch for, or that cannot be compared with.


def alias_taken_away(store, keys):
    del store.aliases[NAME]["production"]


def alias_moved_by_hand(store, keys):
    store.aliases[NAME]["production"] = 3


def record_removed(store, keys):
    (event,) = store.events
    del store.runs[event].files["record.dsse.json"]


def record_by_a_stranger(store, keys):
    (event,) = store.events
    content = json.loads(store.runs[event].files["record.dsse.json"])
    content["signatures"][0]["sig"] = "AAAA"
    store.runs[event].files["record.dsse.json"] = json.dumps(content).encode()


def pointer_forged(store, keys):
    """The version set by hand gets a made-up event; its record is a copy of the true one."""
    alias_moved_by_hand(store, keys)
    (event,) = store.events.values()
    pointer = replace(event.pointer, version=3, sequence=9, from_version=1, to_version=3)
    forged = MemoryRegistry(store).begin_event(pointer, store.runs[event.event_id].files["record.dsse.json"])
    MemoryRegistry(store).finish_event(forged, "done")


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("meddle", "says"),
    [
        (alias_taken_away, "which named version 1, was taken away past the gate"),
        (alias_moved_by_hand, "which named version 1, was moved to version 3 past the gate"),
        (record_removed, "is missing"),
        (record_by_a_stranger, "signature"),
        (pointer_forged, "speaks of another event"),
    ],
)
def test_an_alias_that_the_signed_history_does_not_explain_holds(
    store, data, examine, keys, artifacts, meddle, says
):
    store.add_version(ref(3), artifacts("other-bytes"))
    meddle(store, keys)
    before = in_production(store)
    line = held_line(examine(store, policy_of(data)))
    assert line.startswith("registry: ")
    assert says in line
    assert in_production(store) == before


@pytest.mark.usefixtures("in_process")
def test_doubt_about_the_champion_saves_nobody_from_a_broken_bound(store, data, examine, keys):
    alias_taken_away(store, keys)
    checks = ACCURACY.replace("min = 0.9", "max = 0.5")
    assert examine(store, policy_of(data, checks)).verdict.outcome is Outcome.REJECT


@pytest.mark.usefixtures("in_process")
def test_a_champion_from_before_the_gate_is_compared_with_and_the_card_says_so(store, data, examine):
    store.events.clear()
    run = examine(store, policy_of(data))
    assert run.verdict.outcome is Outcome.PROMOTE
    assert (
        "no signed record vouches for the champion colours/1" in run.report.finding("model").detail["notes"]
    )


@pytest.mark.usefixtures("in_process")
def test_what_the_line_says_to_do_mends_it(store, data, examine, keys):
    actor = Actor("grace", "desk", keys, lambda: store.clock)
    alias_taken_away(store, keys)
    assert "promotion-gate rollback" in held_line(examine(store, policy_of(data)))
    transition.rollback(MemoryRegistry(store), NAME, reason="put it back", actor=actor)
    assert in_production(store) == 1
    assert examine(store, policy_of(data)).verdict.outcome is Outcome.PROMOTE


@pytest.mark.usefixtures("in_process")
def test_a_move_that_a_dead_process_left_is_finished_before_it_is_judged(
    store, data, examine, keys, artifacts
):
    store.add_version(ref(3), artifacts("colour"))

    def die(number, name):
        if name == "set_alias":
            raise Killed

    with pytest.raises(Killed):
        examine(store, policy_of(data), version=3, registry=MemoryRegistry(store, after=die))
    assert in_production(store) == 3
    assert "is changing the production version" in held_line(examine(store, policy_of(data)))
    store.wait(3600)
    # A run that moves nothing settles nothing either.
    looked = examine(store, policy_of(data), promoting=False)
    assert "was begun and has not ended" in held_line(looked)
    assert any(event.state == "begun" for event in store.events.values())
    run = examine(store, policy_of(data))
    assert run.recorded.record.champion == 3
    assert any("begun by a process that died" in note for note in run.recorded.notes)


@pytest.mark.usefixtures("in_process")
def test_a_champion_whose_files_were_swapped_is_not_compared_with(store, data, examine, artifacts):
    store.artifacts[ref(1)] = artifacts("nan")
    line = held_line(examine(store, policy_of(data)))
    assert "champion: the champion colours/1 cannot be compared with: its files have changed" in line


def models_in_process(monkeypatch, candidate, champion):
    """Load these instead of what the folders hold."""

    @contextlib.contextmanager
    def open_model(artifacts, policy, *, class_count, log, confinement=None):
        yield champion if artifacts.folder.name == "champion" else candidate

    monkeypatch.setattr(loader, "open_model", open_model)


def test_a_champion_of_another_size_is_one_line_and_no_crash(store, data, examine, monkeypatch):
    champion = InProcess()
    champion.shape = ImageShape(SIZE + 8, SIZE, 3)
    models_in_process(monkeypatch, InProcess(), champion)
    run = examine(store, policy_of(data, EVERY_CHECK, training="training.npz"))
    line = held_line(run)
    assert "champion: the champion colours/1 cannot be compared with" in line
    assert "it takes images of 24 x 16 x 3, and the candidate of 16 x 16 x 3" in line
    assert not [f.summary for f in run.report.findings if "crashed" in f.summary]
    assert run.report.finding("patch-transplant").status is Status.MEASURED


@pytest.mark.parametrize("changed", [{"scale": 1.0}, {"mean": (0.5,)}, {"std": (1.0, 1.0, 2.0)}])
def test_another_preparation_of_images_than_the_champions_holds(store, data, examine, monkeypatch, changed):
    candidate = InProcess()
    candidate.input = replace(candidate.input, **changed)
    models_in_process(monkeypatch, candidate, InProcess())
    run = examine(store, policy_of(data))
    line = held_line(run)
    assert f"model: the model declares that an image goes in as {candidate.input.preparation}," in line
    assert "the champion as (pixel / 255 - 0) / 1" in line
    assert candidate.input.preparation.encode() in run.card

    models_in_process(monkeypatch, candidate, candidate)
    run = examine(store, policy_of(data))
    assert run.verdict.outcome is Outcome.PROMOTE
    assert candidate.input.preparation.encode() in run.card


# Checks that misbehave.


class Plugin:
    """A check from another package, in good order."""

    name = "plugin"
    metrics: ClassVar = {"readings": "a number"}
    after = ()
    options_type = Options

    def __init__(self, options=None):
        pass

    def examine(self, evidence, earlier):
        return Finding(self.name, Status.MEASURED, "fine", {"readings": 1.0})


class Crashing(Plugin):
    def examine(self, evidence, earlier):
        raise KeyError("two\nlines\x1b[31m")


class OutOfMemory(Plugin):
    def examine(self, evidence, earlier):
        raise MemoryError


class Leaving(Plugin):
    def examine(self, evidence, earlier):
        raise SystemExit(0)


class Silent(Plugin):
    def examine(self, evidence, earlier):
        return None


class Impostor(Plugin):
    def examine(self, evidence, earlier):
        return Finding("per-class", Status.MEASURED, "all is well", {"accuracy": 1.0})


class NotANumber(Plugin):
    def examine(self, evidence, earlier):
        return Finding(self.name, Status.MEASURED, "fine", {"readings": float("nan")})


class LeavingEarly(Plugin):
    @contextlib.contextmanager
    def prepared(self):
        raise SystemExit(0)
        yield


class LeavingLate(Plugin):
    @contextlib.contextmanager
    def prepared(self):
        yield
        raise SystemExit(0)


class AfterItself(Plugin):
    after = ("plugin",)


@pytest.fixture
def install(monkeypatch):
    """Add one check, as a package's entry point would."""
    from promotion_gate.checks import registry

    real = registry.entry_points

    def add(kind):
        point = EntryPoint("plugin", f"{__name__}:{kind.__name__}", registry.GROUP)
        monkeypatch.setattr(registry, "entry_points", lambda group: [*real(group=group), point])

    return add


def with_plugin(required="true"):
    bound = "[checks.plugin.bounds]\nreadings = { min = 0.5 }\n"
    return f"{ACCURACY}[checks.plugin]\nrequired = {required}\n{bound}"


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Crashing, "plugin: the check crashed: KeyError"),
        (OutOfMemory, "plugin: the check ran out of memory"),
        (Leaving, "plugin: the check crashed: SystemExit"),
        (Silent, "plugin: the check crashed"),
        (Impostor, "plugin: the check reported as 'per-class'"),
        (NotANumber, "plugin: readings is not a finite number"),
    ],
)
def test_a_required_check_that_misbehaves_holds(store, data, examine, install, kind, says):
    install(kind)
    run = examine(store, policy_of(data, with_plugin()))
    assert says in held_line(run)
    assert in_production(store) == 1
    assert run.report.finding("per-class").metrics["accuracy"] == 1
    assert set(gate_runs(store)[0].files) == GATE_FILES


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("kind", "required"),
    [(Plugin, "true"), (Crashing, "false"), (LeavingEarly, "true"), (LeavingLate, "true")],
)
def test_a_check_in_order_or_one_not_required_holds_nothing(store, data, examine, install, kind, required):
    install(kind)
    assert examine(store, policy_of(data, with_plugin(required))).verdict.outcome is Outcome.PROMOTE


@pytest.mark.usefixtures("in_process")
def test_a_check_that_crashed_saves_nobody_from_a_broken_bound(store, data, examine, install):
    install(Crashing)
    checks = with_plugin().replace("accuracy = { min = 0.9 }", "accuracy = { max = 0.5 }")
    assert examine(store, policy_of(data, checks)).verdict.outcome is Outcome.REJECT


@pytest.mark.parametrize(
    ("checks", "says"),
    [
        ("[checks.per-clas.bounds]\naccuracy = { min = 0.9 }\n", "checks.per-clas: no such check"),
        ("[checks.per-class.bounds]\nacuracy = { min = 0.9 }\n", "bounds.acuracy: no such metric"),
        (ACCURACY + "[checks.per-class.options]\nalhpa = 1\n", "checks.per-class.options.alhpa"),
    ],
)
def test_a_policy_that_names_what_is_not_there_is_refused_before_anything(store, data, examine, checks, says):
    with pytest.raises(PolicyError, match=says) as caught:
        examine(store, policy_of(data, checks))
    assert caught.value.exit_code == 2
    assert gate_runs(store) == []


def test_a_check_that_leaves_on_import_is_refused(store, data, examine, monkeypatch, tmp_path):
    from promotion_gate.checks import registry

    (tmp_path / "leaving_check.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("plugin", "leaving_check:Check", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    with pytest.raises(PolicyError, match=r"the check 'plugin' .* cannot be loaded"):
        examine(store, policy_of(data))


def test_a_check_that_waits_for_itself_is_refused(store, data, examine, install):
    install(AfterItself)
    with pytest.raises(PolicyError, match="wait for each other: plugin"):
        examine(store, policy_of(data, with_plugin()))


# Models that misbehave.


def test_weights_that_are_not_numbers_hold(artifacts, data, examine, keys):
    store = champion_and_candidate(artifacts, keys, "nan")
    run = examine(store, policy_of(data))
    assert "model: the model answers with NaN logits" in held_line(run)
    assert in_production(store) == 1


def test_a_signature_of_another_size_than_the_model_holds(artifacts, data, examine):
    files = artifacts("colour")
    told = re.sub(rb"\b16,\s+16\b", b"24, 24", files["MLmodel"])
    assert told != files["MLmodel"]
    store = MemoryStore()
    store.add_version(ref(2), {**files, "MLmodel": told})
    assert held_line(examine(store, policy_of(data))).startswith("model: ")
    assert in_production(store) is None


def test_a_policy_of_another_size_than_the_model_holds(store, data, examine):
    run = examine(store, policy_of(data, ACCURACY + "[input]\nheight = 24\n"))
    assert "model: the policy's input.height is 24, and the model's signature says 16" in held_line(run)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("place", ["instead", "beside", "inside"])
def test_a_malicious_pickle_is_rejected_and_never_runs(artifacts, data, examine, tmp_path, place):
    marker = tmp_path / "the-payload-ran"
    code = pickle.dumps(Payload(marker), protocol=2)
    torch_file = io.BytesIO()
    with zipfile.ZipFile(torch_file, "w") as archive:
        archive.writestr("archive/data.pkl", code)
        archive.writestr("archive/version", "3\n")
    if place == "instead":
        files = {**artifacts("obedient"), "data/model.pth": torch_file.getvalue()}
    elif place == "beside":
        files = {**artifacts("colour"), "data/model.pth": torch_file.getvalue()}
    else:
        files = artifacts("colour")
        program = io.BytesIO(files["data/model.pt2"])
        with zipfile.ZipFile(program, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{root}/data/sample_inputs/evil.pt", torch_file.getvalue())
        files["data/model.pt2"] = program.getvalue()
    store = MemoryStore()
    store.add_version(ref(2), files)
    run = examine(store, policy_of(data))
    assert run.verdict.outcome is Outcome.REJECT
    assert run.verdict.outcome.exit_code == ExitCode.REJECTED == 3
    assert verdict_line(run.verdict).startswith("artifacts: ")
    assert run.report.sandbox == "the model was not loaded"
    assert not marker.exists()
    assert in_production(store) is None
    pickle.loads(code)
    assert marker.exists(), "the payload would have been seen"


@pytest.mark.parametrize(
    ("order", "limit", "says"),
    [(1, "seconds = 6", "did not answer in time"), (2, "memory_gib = 1", "more memory")],
)
def test_a_forward_that_never_ends_or_eats_memory_holds(artifacts, examine, tmp_path, order, limit, says):
    images, labels = draw(6, 1, first_pixel=order)
    np.savez(tmp_path / "holdout.npz", images=images, labels=labels)
    store = MemoryStore()
    store.add_version(ref(2), artifacts("obedient"))
    policy = policy_of(tmp_path, ACCURACY + f"[sandbox]\n{limit}\n", top="unsafe_allow_pickle = true")
    run = examine(store, policy)
    line = held_line(run)
    assert says in line
    assert limit.replace("seconds", "sandbox.seconds").replace("memory", "sandbox.memory") in line
    assert run.report.unsafe == ("unsafe_allow_pickle",)
    assert in_production(store) is None


# Data that does not fit.


def unknown_label(folder):
    images, _ = draw(6, 1)
    names = np.array(["red", "green", "mauve\x1b[2J"] * 2)
    np.savez(folder / "holdout.npz", images=images, labels=names)


def empty_class(folder):
    images, labels = draw(9, 1)
    kept = labels != 2
    np.savez(folder / "holdout.npz", images=images[kept], labels=labels[kept], class_names=np.array(CLASSES))


def fourth_class(folder):
    images, _ = draw(8, 1)
    np.savez(folder / "holdout.npz", images=images, labels=np.arange(8) % 4)


def corrupt_image(folder):
    from PIL import Image

    images, labels = draw(6, 1)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        home = folder / "holdout.npz" / CLASSES[label]
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(home / f"{i}.png")
    path = folder / "holdout.npz" / "green" / "1.png"
    path.write_bytes(path.read_bytes()[:60])


def nothing_there(folder):
    pass


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (unknown_label, "mauve"),
        (empty_class, "no image of 1 classes: 'blue'"),
        (fourth_class, "holdout.npz"),
        (corrupt_image, "1.png"),
        (nothing_there, "holdout.npz"),
    ],
)
def test_data_that_does_not_fit_holds_with_one_line(store, examine, tmp_path, spoil, says):
    spoil(tmp_path)
    run = examine(store, policy_of(tmp_path))
    line = held_line(run)
    assert "inputs: " in line
    assert says in line
    assert in_production(store) == 1
    assert set(gate_runs(store)[0].files) == GATE_FILES - {"baseline.dsse.json"}


@pytest.mark.usefixtures("in_process")
def test_a_training_set_that_does_not_fit_holds_too(store, examine, tmp_path, data):
    unknown_label(tmp_path)
    policy = policy_of(data, training=str(tmp_path / "holdout.npz"))
    assert "mauve" in held_line(examine(store, policy))


# A registry that changes or fails under the gate.


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("moment", ["log_metrics", "log_file", "events"])
def test_bytes_changed_after_the_review_are_not_promoted(store, data, examine, moment):
    def tamper(number, name):
        if name == moment:
            store.artifacts[ref(2)]["data/model.pt2"] += b"\0"

    with pytest.raises(ArtifactError, match="changed since they were examined"):
        examine(store, policy_of(data), registry=MemoryRegistry(store, before=tamper))
    assert in_production(store) == 1
    assert [run.status for run in gate_runs(store)] == ["FAILED"]
    assert [event.pointer.to_version for event in store.events.values() if event.pointer.moves] == [1]


@pytest.mark.usefixtures("in_process")
def test_a_champion_that_changed_during_the_examination_is_a_conflict(store, data, examine, artifacts):
    store.add_version(ref(3), artifacts("other-bytes"))

    def overtake(number, name):
        if name == "log_metrics":
            store.aliases[NAME]["production"] = 3

    with pytest.raises(RegistryConflict, match="which named version 1, was moved to version 3 past"):
        examine(store, policy_of(data), registry=MemoryRegistry(store, before=overtake))
    assert in_production(store) == 3


def calls_of_a_promotion(artifacts, keys, data, examine):
    store = champion_and_candidate(artifacts, keys)
    registry = MemoryRegistry(store)
    examine(store, policy_of(data), registry=registry)
    assert in_production(store) == 2
    return registry.calls


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("failure", ["once", "answer lost", "gone for good", "killed"])
def test_a_registry_that_fails_at_any_call_leaves_the_old_version_or_the_new(
    artifacts, data, examine, keys, monkeypatch, failure
):
    # Drawing the card asks the registry nothing, and would take most of the time.
    monkeypatch.setattr(gate, "_render", lambda report: (b"card", b"{}"))
    calls = calls_of_a_promotion(artifacts, keys, data, examine)
    assert len(calls) > 15
    ended = []
    for n in range(1, len(calls) + 1):
        store = champion_and_candidate(artifacts, keys)
        failing = failing_registry(store, n, failure)
        told = None
        with contextlib.suppress(RegistryError, Killed):
            told = examine(store, policy_of(data), registry=failing)
        ended.append(in_production(store))
        assert ended[-1] in (1, 2), calls[n - 1]
        if told is not None:
            assert in_production(store) == 2, f"told of a promotion that was not, at {calls[n - 1]}"
            assert told.recorded.record.transition.to_version == 2

        # The next command finds a history that agrees with production, or makes it agree.
        store.wait(3600)
        actor = Actor("ada", "ship", keys, lambda now=store.clock: now)
        transition.recover(MemoryRegistry(store), NAME, Production(), actor)
        moves = [e for e in store.events.values() if e.pointer.moves and e.state == "done"]
        assert [e.pointer.to_version for e in moves] == ([1, 2] if in_production(store) == 2 else [1])
        assert all(event.state != "begun" for event in store.events.values())
        if told is None:
            assert in_production(store) == 1 or len(moves) == 2, calls[n - 1]
    assert ended[0] == 1
    assert ended[-1] == 2
    assert ended == sorted(ended), "once the alias is set, no later failure takes it back unsaid"


def failing_registry(store, n, failure):
    def before(number, name):
        if failure == "killed" and number == n:
            raise Killed
        if (failure == "once" and number == n) or (failure == "gone for good" and number >= n):
            raise RegistryError("the registry at memory cannot be reached")

    def after(number, name):
        if failure == "answer lost" and number == n:
            raise RegistryError("the registry at memory cannot be reached")

    return MemoryRegistry(store, before, after)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("call", ["log_file", "finish_run"])
def test_papers_that_cannot_be_filed_after_the_move_are_a_note(store, data, examine, call):
    moved = []

    def fail(number, name):
        if name == "set_alias":
            moved.append(number)
        if moved and name == call:
            raise RegistryError("the registry at memory cannot be reached")

    run = examine(store, policy_of(data), registry=MemoryRegistry(store, before=fail))
    assert in_production(store) == 2
    assert run.recorded.record.transition.to_version == 2
    assert any("cannot be reached" in note for note in run.recorded.notes)


def test_findings_of_a_rejected_file_set_are_readable_json(artifacts, data, examine):
    files = artifacts("colour")
    files["data/run\x1b[2Jme.py"] = b"import os"
    store = MemoryStore()
    store.add_version(ref(2), files)
    run = examine(store, policy_of(data))
    assert run.verdict.outcome is Outcome.REJECT
    document = json.loads(run.findings)
    assert document["verdict"]["outcome"] == "REJECT"
    assert run.findings.isascii()
    assert verdict_line(run.verdict).isprintable()


# Measuring alone, for calibration.


def test_a_version_can_be_measured_without_a_trace(store, data):
    before = repr(store)
    policy = policy_of(data)
    found = {f.check: f for f in gate.examine_version(MemoryRegistry(store), ref(2), policy)}
    assert found["per-class"].metrics["accuracy"] == 1
    assert found["per-class"].metrics["accuracy_drop"] == 0
    assert repr(store) == before
    assert not gate_runs(store)


def test_what_is_in_production_is_not_compared_with_itself(store, data):
    found = gate.examine_version(MemoryRegistry(store), ref(1), policy_of(data))
    per_class = next(f for f in found if f.check == "per-class")
    assert "accuracy_drop" in per_class.not_applicable
