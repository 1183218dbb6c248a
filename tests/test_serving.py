"""The model in production for serving code: verified, then loaded from the bytes that were verified."""

import contextlib
import io
import json
import threading
import warnings

import pytest
import torch

import promotion_gate
from promotion_gate import transition
from promotion_gate.core.errors import ArtifactError, SigningError
from promotion_gate.core.keys import TRUSTED_VARIABLE, own_keyring
from promotion_gate.core.types import ModelRef, Outcome
from promotion_gate.evidence import worker
from promotion_gate.evidence.artifacts import VerifiedArtifacts
from promotion_gate.evidence.loader import load_to_serve
from promotion_gate.registry.memory import MemoryRegistry, MemoryStore
from promotion_gate.serving import UnverifiedModelWarning, load, load_from
from promotion_gate.transition import Actor, Judged

REF = ModelRef("signs", 1)
ARCHITECTURE = {"layers": [{"type": "Flatten"}, {"type": "Linear", "args": [12, 2]}, {"type": "Dropout"}]}


def files(bias=0.0):
    module = torch.nn.Linear(12, 2)
    with torch.no_grad():
        module.weight.fill_(1.0)
        module.bias.fill_(bias)
    weights = io.BytesIO()
    torch.save({f"1.{name}": value for name, value in module.state_dict().items()}, weights)
    return {
        "state_dict.pth": weights.getvalue(),
        "architecture.json": json.dumps(ARCHITECTURE).encode(),
    }


@pytest.fixture
def keys(tmp_path, monkeypatch):
    folder = tmp_path / "keys"
    folder.mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv(TRUSTED_VARIABLE, str(folder))
    monkeypatch.delenv("PROMOTION_GATE_KEY", raising=False)
    return own_keyring(folder / "gate.pem")


@pytest.fixture
def store():
    store = MemoryStore()
    store.add_version(REF, files(bias=3.0))
    return store


@pytest.fixture
def promoted(store, keys):
    registry = MemoryRegistry(store)
    digest = transition.artifact_digest(registry, REF)
    judged = Judged(REF, digest, Outcome.PROMOTE, "good", None, "b" * 64)
    transition.promote(registry, judged, actor=Actor("ada", "ship", keys, lambda: store.clock))
    return registry


def test_what_the_gate_let_through_is_loaded_ready_to_serve(promoted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_from(promoted, "signs")
    assert not model.training
    assert model(torch.ones(1, 3, 2, 2)).tolist() == [[15.0, 15.0]]


def test_it_is_the_packages_public_name():
    assert promotion_gate.load is load


def test_changed_bytes_are_never_loaded(promoted, store):
    store.artifacts[REF] = files(bias=4.0)
    for unsafe in (False, True):
        with pytest.raises(ArtifactError, match="have changed"):
            load_from(promoted, "signs", unsafe_unsigned=unsafe)


def test_what_nobody_vouches_for_is_refused_or_warned_of(store, keys):
    registry = MemoryRegistry(store)
    with pytest.raises(SigningError, match="never promoted by the gate"):
        load_from(registry, "signs/1")
    with pytest.warns(UnverifiedModelWarning, match="signs/1 is loaded UNVERIFIED"):
        model = load_from(registry, "signs/1", unsafe_unsigned=True)
    assert not model.training


def test_a_revoked_version_is_not_loaded_even_unverified(store, keys):
    registry = MemoryRegistry(store)
    actor = Actor("ada", "ship", keys, lambda: store.clock)
    transition.revoke(registry, REF, reason="poisoned", actor=actor)
    with pytest.raises(ArtifactError, match="was revoked"):
        load_from(registry, "signs/1", unsafe_unsigned=True)


def test_only_the_named_keys_are_trusted(promoted, tmp_path):
    own_keyring(tmp_path / "other" / "key.pem")
    with pytest.raises(SigningError, match="not trusted here"):
        load_from(promoted, "signs", trust=tmp_path / "other")


def test_refused_files_are_refused_here_too(store, keys):
    store.artifacts[REF]["data/evil.pkl"] = b"\x80\x04."
    with (
        pytest.warns(UnverifiedModelWarning),
        pytest.raises(ArtifactError, match="the model's files are refused"),
    ):
        load_from(MemoryRegistry(store), "signs/1", unsafe_unsigned=True)


def test_an_exported_program_answers_eval(tmp_path):
    """Serving code calls it on whatever it loads."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2), torch.nn.Dropout()).eval()
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 2, 2),)), tmp_path / "model.pt2")
    files = VerifiedArtifacts(tmp_path, (), "", "pt2", "model.pt2", {})
    model = load_to_serve(files)
    assert not model.training
    assert model.eval() is model
    images = torch.ones(1, 3, 2, 2)
    assert torch.equal(model(images), network(images))
    with pytest.raises(NotImplementedError, match="no training mode"):
        model.train()


def test_two_that_load_at_once_leave_torch_as_it_was():
    before, inside = torch.load, threading.Barrier(2, timeout=5)

    def hold():
        with contextlib.suppress(threading.BrokenBarrierError), worker._tensors_only():
            assert torch.load is not before
            inside.wait(0.2)

    threads = [threading.Thread(target=hold) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.load is before
