"""A real training run on registered data, and the same run after one byte of the data was flipped."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.integration

SCRIPT = """
import sys
import mlflow, torch
import promotion_gate

mlflow.set_tracking_uri("sqlite:///mlflow.db")
with mlflow.start_run():
    data = promotion_gate.open_dataset("signs").torch(8, 8)
    print("DATA OPEN")
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for images, labels in loader:
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mlflow.log_metric("loss", float(loss))
    torch.save(model.state_dict(), "model/state_dict.pth")
    promotion_gate.attest("model", ["signs"])
"""


def test_one_flipped_byte_fails_the_run_before_training_sees_it(tmp_path):
    from mlflow import MlflowClient

    from promotion_gate.core.keys import own_keyring
    from promotion_gate.provenance.attest import verify_attestation
    from promotion_gate.provenance.dbom import read_dbom
    from promotion_gate.provenance.register import Particulars, add_path
    from promotion_gate.registry.interface import ATTESTATION_FILE
    from promotion_gate.registry.mlflow import MlflowRegistry

    pixels = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "signs.npz", images=pixels, labels=[0, 1] * 6, class_names=["stop", "yield"])
    entry = add_path(tmp_path / "dbom.json", tmp_path / "signs.npz", Particulars("signs", "1"))
    (tmp_path / "model").mkdir()
    (tmp_path / "train.py").write_text(SCRIPT)
    keys = own_keyring(tmp_path / "trainer.pem")
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PROMOTION_GATE_KEY": str(tmp_path / "trainer.pem"),
    }

    def train():
        return subprocess.run(
            [sys.executable, "train.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    good = train()
    assert good.returncode == 0, good.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs(["0"])
    facts = MlflowRegistry(f"sqlite:///{tmp_path}/mlflow.db").run_facts(run.info.run_id)
    (declared,) = facts.datasets
    assert (declared.name, declared.context) == ("signs", "training")
    assert declared.tags["promotion_gate.sha256"] == entry.sha256
    assert declared.tags["promotion_gate.dbom_sha256"] == read_dbom(tmp_path / "dbom.json").sha256
    envelope = Path(client.download_artifacts(run.info.run_id, ATTESTATION_FILE, str(tmp_path)))
    stated = verify_attestation(envelope.read_bytes(), keys.trusted)
    assert (stated.run_id, stated.datasets) == (run.info.run_id, {"signs": entry.sha256})

    content = bytearray((tmp_path / "signs.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "signs.npz").write_bytes(content)
    bad = train()
    assert bad.returncode != 0
    assert "HashMismatch" in bad.stderr
    assert "DATA OPEN" not in bad.stdout
    failed = client.search_runs(["0"], "attributes.status = 'FAILED'")
    assert len(failed) == 1
    assert not failed[0].data.metrics
