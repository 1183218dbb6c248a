import json
import re
from collections import defaultdict

import numpy as np
import pytest
import torch

from promotion_gate.core.errors import InputError, UsageError
from promotion_gate.data.memory import InMemoryDataset
from promotion_gate.drill.signs import draw_signs
from promotion_gate.drill.train import (
    ARCHITECTURES,
    BasicBlock,
    main,
    normalised,
    predict,
    small_cnn,
    train,
    train_and_register,
)

EASY = ["stop", "priority road", "roundabout"]


@pytest.fixture(scope="module")
def easy():
    signs = draw_signs(120, 1, classes=EASY)
    _, labels = np.unique(signs.labels, return_inverse=True)
    return signs.images, labels.astype(np.int64)


class _Losses:
    def __init__(self):
        self.rows, self.epochs = 0, []

    def update(self, losses, labels):
        assert losses.shape == labels.shape
        self.rows += len(losses)

    def log(self, epoch):
        self.epochs.append(epoch)


def _weights(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def test_learns_and_reports_every_row_of_every_epoch(easy):
    losses = _Losses()
    model = train(*easy, 3, seed=0, epochs=8, batch_size=16, threads=1, losses=losses)
    assert (predict(model, easy[0]) == easy[1]).mean() > 0.8
    assert losses.rows == 8 * 120
    assert losses.epochs == list(range(8))


def test_same_seed_same_weights_and_the_callers_torch_is_left_alone(easy):
    torch.manual_seed(99)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first, again, other = (_weights(train(*easy, 3, seed=s, epochs=1, threads=1)) for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_fine_tuning_starts_from_a_copy(easy):
    start = small_cnn(3)
    before = _weights(start)
    tuned = train(*easy, 3, seed=0, epochs=1, learning_rate=1e-6, threads=1, start=start)
    assert torch.equal(_weights(start), before)
    learned = dict(tuned.named_parameters())
    for name, value in start.named_parameters():
        assert torch.allclose(value, learned[name], atol=1e-3), name


def test_a_residual_network_learns_and_is_fine_tuned(easy):
    model = train(*easy, 3, seed=0, epochs=8, batch_size=16, architecture="resnet")
    right = (predict(model, easy[0]) == easy[1]).mean()
    assert right > 0.8
    assert any(isinstance(block, BasicBlock) for block in model)
    tuned = train(*easy, 3, seed=0, epochs=1, learning_rate=1e-6, architecture="resnet", start=model)
    assert (predict(tuned, easy[0]) == predict(model, easy[0])).mean() > 0.9


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", [16, 40])
def test_every_architecture_takes_other_sizes(architecture, size):
    model = ARCHITECTURES[architecture](5, size).eval()
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 5)


def test_pixels_go_in_as_the_metadata_says():
    image = np.zeros((1, 8, 8, 3), np.uint8)
    image[..., 1] = 255
    out = normalised(image)
    assert out.shape == (1, 3, 8, 8)
    assert out[0, :, 0, 0].tolist() == pytest.approx([-1.6, (1 - 0.38) / 0.25, -1.52])


@pytest.fixture
def tracking(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_registry_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield mlflow
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(None if before[1] == before[0] else before[1])


@pytest.mark.filterwarnings("ignore")
def test_command_registers_a_model_that_takes_any_number_of_images(tracking, tmp_path, capsys):
    draw_signs(40, 1).save(tmp_path / "train.npz")
    draw_signs(20, 2).save(tmp_path / "holdout.npz")
    # All classes are named in the file, so a small draw that misses one still has the full list.
    arguments = "--data train.npz --holdout holdout.npz --name signs --epochs 2 --threads 1"
    assert main(arguments.split()) == 0
    assert "models:/signs/1" in capsys.readouterr().out
    version = tracking.MlflowClient().get_model_version("signs", "1")
    run = tracking.get_run(version.run_id)
    assert run.data.params["epochs"] == "2"
    assert 0 <= run.data.metrics["holdout_accuracy"] <= 1
    assert sum(re.fullmatch(r"class_loss/\d{4}", key) is not None for key in run.data.metrics) > 10
    inputs = defaultdict(list)
    for logged in run.inputs.dataset_inputs:
        inputs[logged.tags[0].value].append(logged.dataset)
    assert {context: len(sets) for context, sets in inputs.items()} == {"training": 1, "testing": 1}
    assert re.fullmatch(r"[0-9a-f]{36}", inputs["training"][0].digest)
    assert json.loads(inputs["training"][0].source)["uri"].endswith("train.npz")
    info = tracking.models.get_model_info("models:/signs/1")
    assert info.metadata["input_scale"] == 255
    assert len(info.metadata["class_names"]) == 18
    loaded = tracking.pytorch.load_model("models:/signs/1")
    for count in (1, 7):
        assert loaded(torch.zeros(count, 3, 32, 32)).shape == (count, 18)


def test_bad_input_is_one_clear_line(tracking, tmp_path, capsys):
    assert main(["--data", str(tmp_path / "absent.npz"), "--name", "signs"]) != 0
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert "absent.npz" in message


def test_refuses_what_it_cannot_train_on(easy):
    one_class = InMemoryDataset(easy[0][:4], [0, 0, 0, 0], ["stop"])
    with pytest.raises(InputError, match="1 classes"):
        train_and_register(one_class, "signs")
    with pytest.raises(UsageError, match="multiple of 8"):
        train_and_register(InMemoryDataset(*easy, EASY), "signs", size=30)
