"""Which version may be looked at in the sandbox, and that nothing is loaded before its bytes are known."""

import pytest

from promotion_gate.core.errors import ArtifactError, RegistryError, SigningError
from promotion_gate.core.policy import parse_policy
from promotion_gate.core.types import ModelRef
from promotion_gate.evidence import loader
from promotion_gate.monitor.explain import open_explainer
from promotion_gate.transition import revoke

POLICY = """
version = 1
[data.holdout]
path = "holdout.npz"
[checks.per-class.bounds]
accuracy = { min = 0.9 }
"""


@pytest.fixture
def opening(world, monkeypatch):
    """Try to open a version; a loader that is reached says so."""

    def reached(artifacts, policy, **rest):
        raise ArtifactError("the loader was reached")

    monkeypatch.setattr(loader, "open_model", reached)

    def attempt(ref=world.ref, trusted=None):
        keys = trusted or world.keys.trusted
        with open_explainer(world.registry, ref, parse_policy(POLICY), keys):
            pytest.fail("there is no model to open")

    return attempt


def test_bytes_that_a_signed_record_names_are_loaded_also_when_revoked_since(opening, world):
    with pytest.raises(ArtifactError, match="loader was reached"):
        opening()
    revoke(world.registry, world.ref, reason="stickers", actor=world.actor)
    with pytest.raises(ArtifactError, match="loader was reached"):
        opening()


def test_changed_bytes_are_not_loaded(opening, world):
    world.store.artifacts[world.ref]["model.bin"] = b"other"
    with pytest.raises(ArtifactError, match="have changed"):
        opening()


def test_what_nobody_who_is_trusted_vouches_for_is_not_loaded(opening, world, stranger):
    with pytest.raises(SigningError):
        opening(trusted=stranger.trusted)
    world.store.add_version(ModelRef("signs", 5), {"model.bin": b"by hand"})
    with pytest.raises(SigningError, match="never promoted"):
        opening(ModelRef("signs", 5))
    with pytest.raises(RegistryError):
        opening(ModelRef("signs", 99))
