"""Model URIs, pointers in tags, and what may be shown of a tracking URI."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promotion_gate.core.errors import UsageError
from promotion_gate.registry.interface import EventPointer
from promotion_gate.registry.naming import (
    host_of,
    lock_name,
    model_key,
    parse_model_uri,
    pointer_tags,
    read_pointer,
)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("models:/traffic-signs/7", ("traffic-signs", 7)),
        ("traffic-signs/7", ("traffic-signs", 7)),
        ("models:/traffic-signs@candidate", ("traffic-signs", "candidate")),
        ("models:/a model with 'quotes'/12", ("a model with 'quotes'", 12)),
    ],
)
def test_model_uris(uri, expected):
    assert parse_model_uri(uri) == expected


@pytest.mark.parametrize(
    "uri",
    [
        *("", "signs", "models:/signs", "models:/signs/", "models:/signs/x", "signs/7/8", "signs/-1"),
        *("models:/signs@", "models:/signs@a b", "models:/signs@a'b", "models:/signs@\x1b[2J", "signs@a@b"),
        *("models:/signs/9999999999999999999999", "runs:/abc/model", "models:/m-123", "signs/7\n", "/7"),
    ],
)
def test_other_texts_are_one_line(uri):
    with pytest.raises(UsageError) as caught:
        parse_model_uri(uri)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("stage", ["Production", "staging", "latest"])
def test_a_stage_is_told_what_to_use_instead(stage):
    with pytest.raises(UsageError, match=r"names a stage.*models:/signs/7 or models:/signs@alias"):
        parse_model_uri(f"models:/signs/{stage}")


@given(st.text(max_size=60))
def test_any_text_is_a_version_an_alias_or_a_usage_error(uri):
    try:
        name, version = parse_model_uri(uri)
    except UsageError:
        return
    assert name
    assert isinstance(version, int) or version.replace("-", "_").isalnum() or "_" in version or "-" in version


numbers = st.none() | st.integers(1, 10**6)


@given(
    pointer=st.builds(
        EventPointer,
        name=st.text(min_size=1, max_size=30),
        version=st.integers(1, 10**6),
        action=st.sampled_from(["promote", "rollback", "approve", "reject", "hold"]),
        alias=st.just("production"),
        sequence=st.integers(1, 10**6),
        from_version=numbers,
        to_version=numbers,
        mirror_stage=st.booleans(),
        gate_run_id=st.sampled_from(["", "abc"]),
    )
)
def test_a_pointer_survives_its_tags(pointer):
    assert read_pointer(pointer_tags(pointer)) == pointer


@given(st.data())
def test_damaged_tags_point_nowhere_or_elsewhere_but_never_crash(data):
    tags = pointer_tags(EventPointer("m", 1, "promote", "production", 1, None, 1))
    key = data.draw(st.sampled_from(sorted(tags)))
    if data.draw(st.booleans()):
        tags[key] = data.draw(st.text(max_size=10))
    else:
        del tags[key]
    pointer = read_pointer(tags)
    assert pointer is None or pointer.action in ("promote", "rollback", "approve", "reject", "hold")


@given(st.text(max_size=300))
def test_a_models_key_and_lock_need_no_quoting(name):
    assert model_key(name).isalnum()
    assert lock_name(name).replace("-", "").isalnum()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:secret@mlflow.example:5000/path/?token=x#y", "http://mlflow.example:5000/path"),
        ("https://mlflow.example", "https://mlflow.example"),
        ("postgresql://ada:secret@db/mlflow?sslmode=require", "postgresql://db/mlflow"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("http://a@b:secret@host", "http://host"),
    ],
)
def test_credentials_are_never_shown(uri, shown):
    assert host_of(uri) == shown
