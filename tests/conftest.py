"""What several rooms need: a model in a registry in memory, and real traffic signs from GATE_TEST_DATA."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

# Each of two workers has a core to itself; a second thread of torch's would wait for the other worker's.
os.environ.setdefault("OMP_NUM_THREADS", "1")

LONG = (
    *("test_gtsrb.py", "test_live_suspects.py", "test_drills.py", "test_gate_cli.py", "test_faults.py"),
    *("test_gate.py", "test_loader.py", "test_evasions.py", "test_embedding_map.py", "test_cli.py"),
)
"""Files that begin first, so that no worker is left with one of them at the end."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def module_at(path):
    """A module that stands beside the tests and is no test itself."""
    if path.stem in sys.modules:
        return sys.modules[path.stem]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name while the body runs.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


MLFLOW_STATE = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID")


@pytest.fixture(autouse=True)
def _mlflow_forgets():
    """MLflow keeps what it was last pointed at in the environment, where the next test would find it."""
    before = {name: os.environ.get(name) for name in MLFLOW_STATE}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def worlds():
    """The module ``world.py``: a model in memory and somebody who acts on it."""
    return module_at(Path(__file__).with_name("world.py"))


@pytest.fixture(scope="session")
def keyring(tmp_path_factory):
    """A key that trusts itself alone."""
    from promotion_gate.core.keys import own_keyring

    return own_keyring(tmp_path_factory.mktemp("keys") / "signing-key.pem")


@pytest.fixture
def world(worlds, keyring):
    return worlds.World(keyring)


@pytest.fixture(scope="session")
def gtsrb():
    """The module ``bench/gtsrb.py``."""
    return module_at(Path(__file__).with_name("bench") / "gtsrb.py")


@pytest.fixture(scope="session")
def patchworld():
    """The module ``detect/patchworld.py``: small models with and without a backdoor."""
    return module_at(Path(__file__).with_name("detect") / "patchworld.py")


@pytest.fixture(scope="session")
def looks():
    """The module ``monitor/looks.py``: what the monitor hands on of a made-up model."""
    return module_at(Path(__file__).with_name("monitor") / "looks.py")


@pytest.fixture(scope="session")
def gtsrb_folder():
    folder = Path(os.environ.get("GATE_TEST_DATA", ""))
    if not (folder / "gtsrb32.npz").is_file() or "GATE_TEST_DATA" not in os.environ:
        pytest.skip("real traffic signs are not here: GATE_TEST_DATA names no folder with gtsrb32.npz")
    return folder


@pytest.fixture(scope="session")
def faults():
    """The module ``faults/campaign.py``: models on a real server, and ways to break what is done to them."""
    return module_at(Path(__file__).with_name("faults") / "campaign.py")


@pytest.fixture(scope="session")
def parts_of():
    """The module ``integration/parts.py``: PostgreSQL and an S3 endpoint of a test's own."""
    return module_at(Path(__file__).with_name("integration") / "parts.py")
