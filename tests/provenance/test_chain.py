import json
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from fsspec import filesystem

from promotion_gate.core.errors import SigningError, Unregistered
from promotion_gate.core.keys import own_keyring
from promotion_gate.core.types import ArtifactFile, DatasetInput, RunFacts
from promotion_gate.data.files import Location
from promotion_gate.data.imagefolder import FileImages
from promotion_gate.provenance.attest import code_commit, sign_attestation, verify_attestation
from promotion_gate.provenance.chain import SHA256_TAG, declared_datasets, follow
from promotion_gate.provenance.dbom import read_dbom
from promotion_gate.provenance.register import Particulars, add_path, remove
from promotion_gate.training import attest


def git(folder, *arguments):
    command = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def trained(registered, signs):
    """A committed document, a model, its attestation and the facts that make the whole chain hold."""
    home = registered.parent
    git(home, "init", "--quiet")
    git(home, "add", "dbom.json", "dbom.d")
    git(home, "commit", "--quiet", "-m", "data")
    (home / "model").mkdir()
    (home / "model" / "MLmodel").write_text("m")
    keys = own_keyring(home / "keys" / "trainer.pem")
    envelope = attest(
        home / "model", ["signs"], key=keys.signing, run_id="", out=home / "attestation.json", dbom=registered
    )
    entry = read_dbom(registered).entry("signs")
    facts = RunFacts(
        "run-1",
        "ann",
        None,
        {},
        {"mlflow.source.git.commit": git(home, "rev-parse", "HEAD")},
        {},
        (DatasetInput("signs", "training", "", entry.sha256[:36], {SHA256_TAG: entry.sha256}),),
    )
    digest = verify_attestation(envelope, keys.trusted).files["MLmodel"]
    parts = {
        "attestation": envelope,
        "trainers": keys.trusted,
        "files": (ArtifactFile("MLmodel", 1, digest),),
        "run": facts,
        "dbom": read_dbom(registered),
        "training": signs / "a b",
        "images": file_images(signs / "a b" / "sp ace.png"),
    }
    return attested_anew(parts, home)


def file_images(*paths):
    """An image set that reads these files."""
    place = Location(filesystem("file"), str(paths[0].parent), str(paths[0].parent))
    names = list(map(str, paths))
    return FileImages(place, names, names, np.zeros(len(paths), np.int64), ("stop",), ())


def attested_anew(trained, home, **changed):
    """The parts with a new statement on what is there now, signed by the same trainer."""
    dbom = read_dbom(home / "dbom.json")
    run_id = changed.pop("run_id", "run-1")
    envelope = sign_attestation(
        trained["files"], dbom, [dbom.entry("signs")], own_keyring(home / "keys" / "trainer.pem").signing,
        commit=changed.pop("commit", code_commit(home)), run_id=run_id, finished=datetime.now(UTC),
        **changed,
    )  # fmt: skip
    return {**trained, "attestation": envelope}


def broken(parts):
    return [(link.name, link.said) for link in follow(**parts) if not link.holds]


def test_an_honest_chain_holds(trained):
    assert broken(trained) == []
    assert [link.name for link in follow(**trained)] == [
        "signature", "model", "commit", "data", "run", "examined",
    ]  # fmt: skip
    (declared,) = declared_datasets(trained["run"], trained["dbom"])
    assert declared.registered


def test_the_statement_is_slsa_provenance(trained):
    import base64

    envelope = json.loads(trained["attestation"])
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert set(statement["predicate"]) == {"buildDefinition", "runDetails"}
    digests = [d["digest"] for d in statement["predicate"]["buildDefinition"]["resolvedDependencies"]]
    assert [next(iter(d)) for d in digests] == ["sha256", "sha256", "gitCommit"]


def test_it_breaks_at_the_signature(trained, tmp_path):
    assert broken({**trained, "attestation": None})[0] == (
        "signature",
        "the run holds no training attestation",
    )
    other = own_keyring(tmp_path / "other.pem").trusted
    assert broken({**trained, "trainers": other})[0][0] == "signature"
    forged = json.loads(trained["attestation"])
    forged["payload"] = forged["payload"][:-8] + "AAAAAAA="
    links = broken({**trained, "attestation": json.dumps(forged).encode()})
    assert links[0][0] == "signature"
    assert "altered" in links[0][1]
    assert len(links) == 6


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 99_999, b'{"payload": 1}', b"\xff"])
def test_a_malformed_attestation_is_a_broken_link(trained, content):
    assert broken({**trained, "attestation": content})[0][0] == "signature"


def test_it_breaks_at_the_model(trained):
    file = trained["files"][0]
    assert broken({**trained, "files": (replace(file, sha256="0" * 64),)}) == [
        ("model", "the file 'MLmodel' is not the one attested")
    ]
    more = (file, ArtifactFile("code/x.py", 1, "0" * 64))
    assert broken({**trained, "files": more})[0] == ("model", "the file 'code/x.py' was not attested")


def test_it_breaks_at_the_commit(trained, registered):
    home = registered.parent
    git(home, "commit", "--quiet", "--amend", "--allow-empty", "-m", "other")
    git(home, "reflog", "expire", "--expire=now", "--all")
    git(home, "gc", "--quiet", "--prune=now")
    names = [name for name, _ in broken(trained)]
    assert names[:2] == ["commit", "data"]


def test_a_later_document_does_not_break_it_but_a_quarantine_does(trained, registered, signs):
    (registered.parent / "new").write_text("new")
    add_path(registered, registered.parent / "new", Particulars("new", "1"))
    assert broken({**trained, "dbom": read_dbom(registered)}) == []
    add_path(registered, signs, Particulars("signs", "1", vetting="quarantined"), replacing=True)
    links = dict(broken({**trained, "dbom": read_dbom(registered)}))
    assert "quarantined today" in links["data"]


def test_it_breaks_at_the_run(trained):
    run = trained["run"]
    dataset = run.datasets[0]
    for other, said in (
        (replace(run, datasets=()), "did not declare"),
        (replace(run, datasets=(replace(dataset, tags={}),)), "did not declare"),
        (replace(run, datasets=(dataset, replace(dataset, name="more", tags={}))), "'more', which was not"),
        (replace(run, tags={"mlflow.source.git.commit": "f" * 40}), "was at commit"),
        (None, "no training run"),
    ):
        ((name, why),) = broken({**trained, "run": other})
        assert (name, said in why) == ("run", True), why


def test_a_document_from_a_branch_that_was_never_merged_breaks_it(trained, registered, signs):
    """Data vetted on a side branch alone: nobody who may merge has seen it."""
    home = registered.parent
    (home / "side").write_text("data")
    git(home, "checkout", "--quiet", "-b", "side")
    add_path(registered, home / "side", Particulars("side", "1"))
    git(home, "commit", "--quiet", "-a", "-m", "side")
    commit = code_commit(home)
    parts = attested_anew(trained, home, commit=commit)
    run = replace(trained["run"], tags={"mlflow.source.git.commit": commit})
    assert broken({**parts, "run": run, "dbom": read_dbom(registered)}) == []
    git(home, "checkout", "--quiet", "-")
    ((name, why),) = broken({**parts, "run": run, "dbom": read_dbom(registered)})
    assert (name, "never merged" in why) == ("commit", True), why


def test_data_that_is_gone_from_the_document_breaks_it(trained, registered):
    remove(registered, "signs")
    links = dict(broken({**trained, "dbom": read_dbom(registered)}))
    assert "not registered today" in links["data"]


def test_a_statement_without_a_run_is_not_taken_for_another(trained, registered):
    home = registered.parent
    ((name, why),) = broken(attested_anew(trained, home, run_id=""))
    assert (name, "names no run" in why) == ("run", True)
    ((name, why),) = broken(attested_anew(trained, home, run_id="run-2"))
    assert (name, "is of run 'run-2'" in why) == ("run", True)


def test_a_statement_without_a_commit_is_not_taken_for_one_of_a_repository(trained, registered):
    home = registered.parent
    links = dict(broken(attested_anew(trained, home, commit="")))
    assert "no commit was attested" in links["commit"]
    assert "attested is none" in links["run"]
    shutil.rmtree(home / ".git")
    without = attested_anew(trained, home, commit="")
    assert broken({**without, "run": replace(trained["run"], tags={})}) == []


def test_code_that_was_not_committed_breaks_it(trained, registered):
    home = registered.parent
    (home / "train.py").write_text("honest")
    (home / "notes.txt").write_text("what training leaves is not code")

    def attested():
        envelope = attest(
            home / "model", ["signs"], key=home / "keys" / "trainer.pem", run_id="", out=home / "a",
            dbom=registered,
        )  # fmt: skip
        return verify_attestation(envelope, trained["trainers"]).uncommitted

    assert attested() == ("train.py",)
    git(home, "add", "train.py")
    git(home, "commit", "--quiet", "-m", "code")
    assert attested() == ()
    (home / "train.py").write_text("poison")
    assert attested() == ("train.py",)
    git(home, "checkout", "--quiet", "train.py")
    commit = code_commit(home)
    run = replace(trained["run"], tags={"mlflow.source.git.commit": commit})
    dirty = attested_anew(trained, home, uncommitted=("train.py",))
    assert broken({**dirty, "run": run}) == [
        ("commit", "the code was not that of the commit; uncommitted: 'train.py'")
    ]


def test_a_manifest_in_the_set_that_names_files_outside_breaks_it(trained, registered, signs):
    """The set's own bytes are vetted; what the gate would read is not."""
    outside = registered.parent / "outside.png"
    outside.write_text("x")
    for path in (outside, signs / ".." / "outside.png"):
        ((name, why),) = broken({**trained, "images": file_images(signs / "plain.png", path)})
        assert (name, "which is not part of signs" in why) == ("examined", True), why
    assert broken({**trained, "images": None})[0][0] == "examined"


def test_it_breaks_at_what_the_gate_examines(trained, signs):
    (signs / "plain.png").write_text("changed")
    assert broken(trained) == [("examined", "the gate examines signs: changed: 'plain.png'")]
    assert broken({**trained, "training": signs.parent})[0][0] == "examined"
    assert broken({**trained, "training": None}) == []


def test_declared_data_without_an_entry_is_not_registered(trained):
    run = trained["run"]
    for tags in ({}, {SHA256_TAG: "0" * 64}):
        (declared,) = declared_datasets(
            replace(run, datasets=(replace(run.datasets[0], tags=tags),)), trained["dbom"]
        )
        assert not declared.registered


def test_nothing_is_attested_of_quarantined_data_or_without_a_place_for_it(trained, registered, signs):
    home = registered.parent
    with pytest.raises(SigningError, match="no MLflow run"):
        attest(home / "model", ["signs"], key=home / "keys" / "trainer.pem")
    with pytest.raises(SigningError, match="at least one"):
        attest(home / "model", [], key=home / "keys" / "trainer.pem", out=home / "o")
    add_path(registered, signs, Particulars("signs", "1", vetting="quarantined"), replacing=True)
    with pytest.raises(Unregistered):
        attest(home / "model", ["signs"], key=home / "keys" / "trainer.pem", out=home / "o")
    assert not (home / "o").exists()
