import os
import subprocess
import sys
from pathlib import Path

import pytest

from promotion_gate.drill.signs import draw_signs

FOLDER = Path(__file__).parents[2] / "mlflow_project"


@pytest.mark.integration
def test_train_entry_point_registers_a_model_on_the_server(mlflow_server, tmp_path):
    from mlflow import MlflowClient

    draw_signs(60, 1).save(tmp_path / "train.npz")
    command = [
        *(sys.executable, "-m", "mlflow", "run", str(FOLDER), "-e", "train", "--env-manager", "local"),
        *("-P", "data=train.npz", "-P", "name=project-signs", "-P", "epochs=1"),
    ]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": mlflow_server,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    version = MlflowClient(mlflow_server).get_model_version("project-signs", "1")
    assert version.status == "READY"
