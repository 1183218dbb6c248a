"""Statements are read back before they are sealed, and again when they are opened."""

from typing import Literal

import pytest
from pydantic import Field

from promotion_gate.core.envelope import canonical, seal
from promotion_gate.core.errors import SigningError
from promotion_gate.core.keys import own_keyring
from promotion_gate.core.statement import (
    Part,
    StatedModel,
    Subject,
    sign_statement,
    verified_statement,
)


class Form(Part):
    kind: Literal["a"] = Field(alias="_kind")
    model: StatedModel
    subject: tuple[Subject]


STATEMENT = {
    "_kind": "a",
    "model": {"name": "signs", "version": 3},
    "subject": [{"name": "models:/signs/3", "digest": {"sha256": "0" * 64}}],
}


@pytest.fixture
def keys(tmp_path):
    return own_keyring(tmp_path / "key.pem")


def test_what_was_signed_is_read_back(keys):
    content = sign_statement(STATEMENT, Form, "it", keys.signing)
    read = verified_statement(content, Form, keys.trusted, "it")
    assert read.model.subject_of(*read.subject, "it").uri == "models:/signs/3"
    assert content == sign_statement(STATEMENT, Form, "it", keys.signing)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"_kind": "b"}, "_kind: "),
        ({"more": 1}, "more: Extra inputs are not permitted"),
        ({"model": {"name": "", "version": 3}}, "model.name: "),
        ({"model": {"name": "signs", "version": 10**18}}, "model.version: "),
        ({"subject": []}, "subject.0: "),
        ({"subject": [{"name": "x", "digest": {"sha256": "0" * 63}}]}, "subject.0.digest.sha256: "),
    ],
)
def test_another_form_is_neither_signed_nor_believed(keys, change, why):
    with pytest.raises(SigningError, match="it cannot be signed: " + why):
        sign_statement(STATEMENT | change, Form, "it", keys.signing)
    with pytest.raises(SigningError, match="it is malformed: " + why):
        verified_statement(seal(canonical(STATEMENT | change), keys.signing), Form, keys.trusted, "it")


def test_a_subject_of_another_version_is_refused():
    subject = Subject.model_validate({"name": "models:/signs/4", "digest": {"sha256": "0" * 64}})
    with pytest.raises(SigningError, match="its subject is not the model version"):
        StatedModel(name="signs", version=3).subject_of(subject, "it")
