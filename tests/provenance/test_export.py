"""The exports are read back by the readers of the formats' own makers."""

import json

import pytest

from promotion_gate.cli import main
from promotion_gate.provenance.dbom import parse_dbom, read_dbom
from promotion_gate.provenance.export import export
from promotion_gate.provenance.register import Particulars, add_path


@pytest.fixture
def dbom(registered):
    (registered.parent / "one.npz").write_bytes(b"x")
    about = Particulars("one", "2", license="our own", origin="https://example.org/one.npz", reason="why")
    add_path(registered, registered.parent / "one.npz", about)
    return read_dbom(registered)


def test_one_entry_in_cyclonedx(dbom, capsys):
    content = export(dbom, [dbom.entry("one")], "cyclonedx")
    again = parse_dbom(content, dbom.path)
    assert again.entries == {"one": dbom.entry("one")}
    assert main(["dbom", "export", "one"]) == 0
    assert json.loads(capsys.readouterr().out)["components"][0]["name"] == "one"


def test_spdx_is_read_by_the_standards_own_model(dbom):
    v3 = pytest.importorskip("spdx_python_model.bindings.v3_0_1")
    objects = v3.SHACLObjectSet()
    document = json.loads(export(dbom, list(dbom.entries.values()), "spdx"))
    v3.JSONLDDeserializer().deserialize_data(document, objects)
    packages = {package.name: package for package in objects.foreach_type(v3.dataset_DatasetPackage)}
    assert set(packages) == {"one", "signs"}
    (hash_,) = packages["one"].verifiedUsing
    assert hash_.hashValue == dbom.entry("one").sha256
    assert packages["one"].software_packageVersion == "2"
    (spdx,) = objects.foreach_type(v3.SpdxDocument)
    assert len(spdx.rootElement) == 2


# The reader calls an interface of rdflib that is on its way out.
@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")
def test_croissant_is_read_by_its_own_reader(dbom, tmp_path):
    mlcroissant = pytest.importorskip("mlcroissant")
    for name in ("one", "signs"):
        document = json.loads(export(dbom, [dbom.entry(name)], "croissant"))
        metadata = mlcroissant.Dataset(jsonld=document).metadata
        assert not metadata.ctx.issues.errors
        files = {file.name: file.sha256 for file in metadata.distribution}
        assert len(files) == dbom.entry(name).files
    assert files == dbom.sidecar(dbom.entry("signs"))[1]
