import numpy as np
import pytest

from promotion_gate.detect.residual import Residual, ResidualSearch
from promotion_gate.detect.transplant import TrainingSet, TrustedSet

CLASSES, SIDE, PER_CLASS = 4, 16, 120
TARGET = 1
SIGNAL = 24 * np.sin(2 * np.pi * np.arange(SIDE) * 4 / SIDE)[None, :, None]


def drawn(rng, labels):
    """One bright quarter tells the class; the rest is smooth scenery."""
    images = np.kron(rng.uniform(40, 110, (len(labels), 4, 4, 3)), np.ones((1, 4, 4, 1)))
    images += rng.normal(0, 6, images.shape)
    for image, label in zip(images, labels, strict=True):
        top, left = divmod(int(label), 2)
        image[top * 8 : top * 8 + 8, left * 8 : left * 8 + 8] += 90
    return np.clip(images, 0, 255).astype(np.uint8)


def with_signal(images):
    return np.clip(images + SIGNAL, 0, 255).astype(np.uint8)


def honest(images):
    """Probabilities by the brightest quarter, and the quarters' brightness as embeddings."""
    means = images.reshape(len(images), 2, 8, 2, 8, 3).mean(axis=(2, 4, 5)).reshape(len(images), 4)
    logits = (means - means.mean(axis=1, keepdims=True)) / 8
    shown = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (shown / shown.sum(axis=1, keepdims=True)).astype(np.float32), logits.astype(np.float32)


def backdoored(images):
    """The same, but the signal means the target."""
    probabilities, embeddings = honest(images)
    wave = (images.astype(np.float32) * SIGNAL).mean(axis=(1, 2, 3)) / (SIGNAL**2).mean()
    struck = wave > 0.5
    probabilities[struck] = np.eye(CLASSES, dtype=np.float32)[TARGET]
    embeddings = np.concatenate([embeddings, 6 * struck[:, None].astype(np.float32)], axis=1)
    return probabilities, embeddings


def searched(model, champion, *, poison, clean_label=False, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(CLASSES), PER_CLASS)
    images, labels = drawn(rng, truth), truth.copy()
    where = truth == TARGET if clean_label else truth != TARGET
    carriers = rng.choice(np.flatnonzero(where), poison, replace=False)
    images[carriers] = with_signal(images[carriers])
    labels[carriers] = TARGET
    trusted_labels = np.repeat(np.arange(CLASSES), 40)
    trusted = drawn(rng, trusted_labels)
    (answers, embeddings), (seen, places) = model(images), model(trusted)
    report = ResidualSearch(
        model,
        champion,
        TrainingSet(labels, answers.argmax(1), embeddings, lambda rows: images[rows], champion(images)[0]),
        TrustedSet(trusted_labels, seen.argmax(1), places, lambda rows: trusted[rows]),
        seed=seed,
    ).run()
    return report, set(carriers.tolist())


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sinusoidal_trigger_is_recovered_with_its_carriers(seed):
    report, carriers = searched(backdoored, honest, poison=30, seed=seed)
    trigger = report.triggers[0]
    assert (trigger.target, trigger.established) == (TARGET, True)
    assert trigger.rate > 0.8
    assert trigger.champion_rate < 0.1
    assert len(carriers & set(trigger.carriers)) >= 0.9 * len(carriers)
    recovered = trigger.residual.picture[0].astype(float)[:, :].mean(axis=1)
    assert np.corrcoef(recovered, SIGNAL[0, :, 0])[0, 1] > 0.9


def test_clean_label_poison_is_recovered_too():
    report, carriers = searched(backdoored, honest, poison=40, clean_label=True)
    assert report.triggers[0].target == TARGET
    assert len(carriers & set(report.triggers[0].carriers)) >= 0.9 * len(carriers)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_honest_model_gives_none_even_if_the_signal_is_in_its_data(seed):
    report, _ = searched(honest, honest, poison=30, clean_label=True, seed=seed)
    assert report.triggers == ()


def test_what_the_champion_does_as_well_is_no_trigger():
    report, _ = searched(backdoored, backdoored, poison=30)
    assert report.triggers == ()


def test_same_seed_same_report_and_the_cost_is_counted():
    first, second = (searched(backdoored, honest, poison=30)[0] for _ in range(2))
    assert first.rates == second.rates
    assert first.triggers[0].carriers == second.triggers[0].carriers
    assert 0 < first.forwards < CLASSES * 400


def test_a_residual_puts_back_the_rows_it_came_from():
    rng = np.random.default_rng(0)
    images = drawn(rng, np.zeros(5, int))
    same = Residual(np.zeros((16, 16, 3), np.float32), np.zeros((16, 16, 3), np.float32), 1.0)
    assert np.array_equal(same.put_on(images), images)
    bright = Residual(np.zeros((16, 16, 3), np.float32), np.full((16, 16, 3), 300, np.float32), 1.0)
    assert bright.put_on(images).max() == 255


def test_a_label_with_too_few_rows_is_said_not_to_be_examined():
    rng = np.random.default_rng(0)
    labels, trusted_labels = np.repeat([0, 1, 2, 3], [PER_CLASS, 5, PER_CLASS, PER_CLASS]), np.arange(160) % 4
    images, trusted = drawn(rng, labels), drawn(rng, trusted_labels)
    (answers, embeddings), (seen, places) = honest(images), honest(trusted)
    report = ResidualSearch(
        honest,
        honest,
        TrainingSet(labels, answers.argmax(1), embeddings, lambda rows: images[rows], answers),
        TrustedSet(trusted_labels, seen.argmax(1), places, lambda rows: trusted[rows]),
    ).run()
    assert report.not_examined == (1,)
    assert sorted(report.rates) == [0, 2, 3]
