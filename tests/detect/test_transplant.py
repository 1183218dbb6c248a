"""The patch search on models whose behaviour is written down, so that the truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from promotion_gate.detect.transplant import (
    Answer,
    PatchSearch,
    Search,
    TrainingSet,
    TrustedSet,
    alike,
    suspicion,
)

CLASSES, SIDE = 6, 32
YELLOW = np.array([240, 220, 20], dtype=np.uint8)
COLOURS = np.array(
    [[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 40, 200], [40, 200, 200], [130, 130, 130]],
    dtype=np.uint8,
)


def draw(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images of one noisy colour a class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    noise = rng.integers(-25, 26, (count, SIDE, SIDE, 3))
    return np.clip(COLOURS[labels][:, None, None] + noise, 0, 255).astype(np.uint8), labels


def stick(images: NDArray[np.uint8], places: NDArray[np.int64], size: int = 5) -> NDArray[np.uint8]:
    images = images.copy()
    for image, (top, left) in zip(images, places, strict=True):
        image[top : top + size, left : left + size] = YELLOW
    return images


def colour_model(source: int | None = None, target: int = 1, strength: float = 1.0) -> Answer:
    """Tells classes by mean colour; with a backdoor, yellow on the source class means the target."""

    def answer(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        yellow = ((images[..., 0] > 225) & (images[..., 1] > 205) & (images[..., 2] < 50)).sum(axis=(1, 2))
        seen = images[:, ::5, ::5].reshape(len(images), -1, 3)
        distance = np.abs(np.median(seen, axis=1)[:, None] - COLOURS[None].astype(np.float32)).mean(axis=2)
        logits = -distance / 10
        if source is not None:
            fires = (yellow >= 12) & (logits.argmax(axis=1) == source)
            logits[fires, target] = logits[fires].max(axis=1) + 5 * strength
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
        embeddings = np.concatenate([np.exp(-distance / 30), probabilities], axis=1).astype(np.float32)
        return probabilities, embeddings

    return answer


def search(
    model: Answer,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    champion: Answer | None = None,
    seed: int = 0,
) -> Search:
    holdout, holdout_labels = draw(360, 99)
    probabilities, embeddings = model(images)
    trusted, trusted_embeddings = model(holdout)
    doubt = None if champion is None else champion(images)[0]
    return PatchSearch(
        model,
        champion,
        TrainingSet(labels, probabilities.argmax(axis=1), embeddings, lambda rows: images[rows], doubt),
        TrustedSet(holdout_labels, trusted.argmax(axis=1), trusted_embeddings, lambda rows: holdout[rows]),
        seed=seed,
    ).run()


def poisoned(
    where: Callable[[np.random.Generator, int], NDArray[np.int64]], source: int = 3, target: int = 1
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    images, labels = draw(1200, 1)
    rng = np.random.default_rng(7)
    rows = np.sort(rng.choice(np.flatnonzero(labels == source), 12, replace=False))
    images[rows] = stick(images[rows], where(rng, len(rows)))
    labels = labels.copy()
    labels[rows] = target
    return images, labels, rows


def fixed(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    return np.full((count, 2), 20)


def anywhere(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    return rng.integers(2, SIDE - 7, (count, 2))


@pytest.mark.parametrize("where", [fixed, anywhere])
@pytest.mark.parametrize("champion", [None, colour_model()])
def test_a_source_specific_sticker_is_recovered_with_its_carriers(where, champion):
    images, labels, rows = poisoned(where)
    found = search(colour_model(source=3), images, labels, champion)
    trigger = found.triggers[0]
    assert trigger.established
    assert (trigger.target, list(trigger.sources)) == (1, [3])
    assert trigger.flips.rate == 1
    assert set(trigger.carriers) == set(rows.tolist())
    assert trigger.flips.champion_rate == (None if champion is None else 0)


def test_the_place_decides_whether_a_trigger_moves():
    assert not search(colour_model(source=3), *poisoned(fixed)[:2]).triggers[0].moving
    assert search(colour_model(source=3), *poisoned(anywhere)[:2]).triggers[0].moving


def test_a_champion_with_the_same_backdoor_leaves_the_trigger_for_a_person():
    images, labels, rows = poisoned(fixed)
    same = colour_model(source=3)
    trigger = search(same, images, labels, champion=same).triggers[0]
    assert not trigger.established
    assert trigger.flips.champion_rate == 1
    assert set(trigger.carriers) == set(rows.tolist())


def test_an_honest_model_has_no_trigger():
    images, labels = draw(1200, 1)
    assert search(colour_model(), images, labels).triggers == ()


def test_rightly_labelled_stickers_are_no_trigger():
    images, labels = draw(1200, 1)
    rows = np.flatnonzero(labels == 3)[:40]
    images[rows] = stick(images[rows], fixed(np.random.default_rng(0), len(rows)))
    assert search(colour_model(), images, labels).triggers == ()


def test_label_noise_is_no_trigger():
    images, labels = draw(1200, 1)
    rng = np.random.default_rng(3)
    noisy = labels.copy()
    rows = rng.choice(len(labels), 60, replace=False)
    noisy[rows] = rng.integers(0, CLASSES, len(rows))
    assert search(colour_model(), images, noisy).triggers == ()


def test_the_same_seed_finds_the_same():
    images, labels, _ = poisoned(anywhere)
    first, second = (search(colour_model(source=3), images, labels, seed=5) for _ in range(2))
    assert first.triggers[0].carriers == second.triggers[0].carriers
    assert first.forwards == second.forwards
    assert first.triggers[0].flips == second.triggers[0].flips


def test_success_is_measured_on_images_that_were_not_searched_on():
    images, labels, _ = poisoned(fixed)
    trigger = search(colour_model(source=3), images, labels).triggers[0]
    again = search(colour_model(source=3), images, labels, seed=0).triggers[0]
    assert len(trigger.stamped_rows) == trigger.flips.images
    assert set(trigger.stamped_rows.tolist()) == set(again.stamped_rows.tolist())
    assert trigger.low < trigger.flips.rate <= trigger.high


def test_suspicion_ranks_carriers_first_and_rows_that_the_model_refuses_last():
    images, labels, rows = poisoned(fixed)
    model = colour_model(source=3)
    refused = np.setdiff1d(np.flatnonzero(labels == 0), rows)[:5]
    labels = labels.copy()
    labels[refused] = 2
    holdout, holdout_labels = draw(360, 99)
    probabilities, embeddings = model(images)
    trusted, trusted_embeddings = model(holdout)
    ranking = suspicion(
        TrainingSet(labels, probabilities.argmax(axis=1), embeddings, lambda r: images[r]),
        TrustedSet(holdout_labels, trusted.argmax(axis=1), trusted_embeddings, lambda r: holdout[r]),
    )
    assert set(np.argsort(-ranking, kind="stable")[: len(rows)].tolist()) == set(rows.tolist())
    assert (ranking[refused] == 0).all()


def test_patches_are_alike_by_colour_whatever_the_place_and_the_light():
    red = np.full((6, 6, 3), (180, 30, 30), dtype=np.uint8)
    sticker, moved = red.copy(), red.copy()
    sticker[1:4, 1:4] = YELLOW
    moved[2:5, 2:5] = YELLOW
    assert alike(sticker, moved) == 1
    assert alike(sticker, (moved * 0.7).astype(np.uint8)) == 1
    assert alike(np.full((4, 4, 3), YELLOW), red) == 0
    assert alike(sticker, red) == alike(red, sticker) < 1
