"""Entries that are stated anew, and entries that a person vets."""

import pytest

from promotion_gate.cli import main
from promotion_gate.core.errors import HashMismatch, UsageError
from promotion_gate.provenance.cache import cached_place
from promotion_gate.provenance.dbom import read_dbom
from promotion_gate.provenance.register import Particulars, add_path, add_url, vet
from promotion_gate.provenance.sources import Limits


@pytest.fixture
def there(tmp_path_factory):
    """A file on a server."""
    path = tmp_path_factory.mktemp("web") / "x.png"
    path.write_bytes(b"looked at")
    return path


@pytest.fixture
def fetched(home, there):
    """A document with that file in quarantine."""
    return home / "dbom.json", add_url(home / "dbom.json", there.as_uri(), Particulars("web", "1"), Limits())


def test_what_is_not_stated_anew_is_kept(registered, signs):
    full = Particulars(
        "signs", "2", mirror="s3://m/x", license="MIT", reason="why", locators={"dvc-md5": "0" * 32},
        vetting="quarantined",
    )  # fmt: skip
    add_path(registered, signs, full, replacing=True)
    kept = add_path(registered, signs, Particulars("signs", "3"), replacing=True)
    assert (kept.version, kept.origin, kept.license) == ("3", "https://example.org/signs", "MIT")
    assert (kept.mirror, kept.reason, kept.locators) == ("s3://m/x", "why", {"dvc-md5": "0" * 32})
    assert kept.vetting == "quarantined"
    (signs / "more").touch()
    other = add_path(registered, signs, Particulars("signs", "4"), replacing=True)
    assert (other.origin, other.license) == ("https://example.org/signs", "MIT")
    assert (other.mirror, other.reason, other.locators) == ("", "", {}), "said of other bytes"
    assert other.vetting == "quarantined", "nobody said otherwise"
    assert add_path(
        registered, signs, Particulars("signs", "5", license="CC0-1.0"), replacing=True
    ).license == ("CC0-1.0")


def test_bytes_that_a_server_has_changed_are_not_vetted_unseen(fetched, there, capsys):
    dbom, entry = fetched
    assert entry.vetting == "quarantined"
    there.write_bytes(b"poison")
    again = ["dbom", "add", there.as_uri(), "--name", "web", "--version", "1", "--replace", "--quiet"]
    assert main([*again, "--status", "vetted"]) == 3
    assert "holds other bytes now" in capsys.readouterr().err
    assert read_dbom(dbom).entry("web") == entry
    assert main(again) == 0
    assert read_dbom(dbom).entry("web").vetting == "quarantined"
    assert main([*again, "--status", "vetted"]) == 0, "the same bytes as in quarantine"
    assert main(again) == 0
    assert read_dbom(dbom).entry("web").vetting == "vetted"
    there.write_bytes(b"again other bytes")
    assert main(again) == 0
    assert read_dbom(dbom).entry("web").vetting == "quarantined"


def test_a_person_vets_without_fetching(fetched, there, capsys):
    dbom, entry = fetched
    there.unlink()
    assert main(["dbom", "vet", "web", "--reason", "seen by Ada"]) == 0
    vetted = read_dbom(dbom).entry("web")
    assert (vetted.vetting, vetted.sha256, vetted.reason) == ("vetted", entry.sha256, "seen by Ada")
    assert main(["dbom", "vet", "web", "--reason", "again"]) == 2
    assert "vetted already" in capsys.readouterr().err
    assert main(["dbom", "vet", "other", "--reason", "x"]) == 2


def test_a_copy_of_other_bytes_is_not_vetted(fetched):
    dbom, entry = fetched
    copy = cached_place(entry)
    copy.chmod(0o600)
    copy.write_bytes(b"poison")
    with pytest.raises(HashMismatch, match="holds other bytes"):
        vet(dbom, "web", "looked at")
    with pytest.raises(UsageError, match="reason"):
        vet(dbom, "web", " ")
    assert read_dbom(dbom).entry("web").vetting == "quarantined"
