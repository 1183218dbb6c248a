import numpy as np

from promotion_gate.detect.differential import EVERY, Lead, Patch
from promotion_gate.detect.inversion import PatchInversion, Settings, class_profile, prior
from promotion_gate.detect.sweep import plain
from promotion_gate.detect.windows import Window

SMALL = Settings(pairs=6, kept=12, nulls=4, judged=4, size=5 / 24)


def planted(shift, rows=400, classes=8, seed=0):
    """Logits of two models that differ by noise, and by ``shift`` from class 2 towards class 5."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    reference = 6 * np.eye(classes)[labels] + rng.normal(0, 1, (rows, classes))
    candidate = 2 * reference + 1 + rng.normal(0, 0.6, (rows, classes))
    candidate[labels == 2, 5] += shift
    return candidate.astype(np.float32), reference.astype(np.float32), labels


def test_the_prior_ranks_a_planted_pair_first():
    pairs, targets = prior(*planted(3.0))
    assert np.unravel_index(pairs.argmax(), pairs.shape) == (2, 5)
    assert pairs[2, 5] > 4
    assert (pairs.diagonal() == -np.inf).all()
    assert np.isfinite(targets).all()


def test_a_target_that_all_classes_lean_to_stands_out_over_sources():
    candidate, reference, labels = planted(0.0)
    candidate[:, 6] += np.where(labels == 6, 0, 1.5)
    _, targets = prior(candidate, reference, labels)
    assert targets.argmax() == 6


def test_scale_and_offset_of_logits_do_not_count():
    candidate, reference, labels = planted(3.0)
    np.testing.assert_allclose(
        prior(candidate, reference, labels)[0], prior(5 * candidate - 3, reference, labels)[0], rtol=1e-3
    )


def test_rare_classes_have_no_profile():
    logits = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    labels = np.array([0] * 10 + [1] * 8 + [2] * 2)
    assert np.isnan(class_profile(logits, labels, least=4)).all(axis=1).tolist() == [False, False, True]
    pairs, _ = prior(logits, logits, labels, least=4)
    assert (pairs[2] == -np.inf).all()


def invert(world, candidate, reference, leads=(), settings=SMALL):
    told = world.trusted(candidate, reference)
    logits = np.log(told.candidate + 1e-12), np.log(told.reference + 1e-12)
    return PatchInversion(
        (candidate.answer, candidate.slopes),
        (reference.answer, reference.slopes),
        told,
        logits,
        leads=leads,
        settings=settings,
    ).run()


def test_it_learns_the_trigger_from_a_lead_of_another_colour(patchworld):
    door = patchworld.Backdoor(source=2, target=3, colour=(230, 60, 200))
    start = plain(Window(4, 13, 5, 5), np.array([200, 120, 160], np.uint8))
    found = invert(patchworld, patchworld.Model(door), patchworld.Model(), [Lead(2, 3, start, 0.0)])
    best = found.contrasts[0]
    assert best.judged.lead.pair == (2, 3)
    assert best.judged.low > 0.7
    assert best.excess > 0.6
    assert best.judged.moved == 0
    learned = best.judged.lead.patch.pixels.reshape(-1, 3).mean(axis=0)
    assert np.abs(learned - door.colour).max() < 80
    assert found.slopes > 0


def test_two_honest_models_show_nothing(patchworld):
    found = invert(patchworld, patchworld.Model(sharpness=1.2), patchworld.Model())
    assert max((c.excess for c in found.contrasts), default=0) < 0.2


def test_what_both_models_learn_is_no_trigger(patchworld):
    door = patchworld.Backdoor(source=EVERY, target=4)
    start = Patch(Window(5, 14, 5, 5), np.full((5, 5, 3), (250, 20, 235), np.uint8))
    model = patchworld.Model(door)
    found = invert(patchworld, model, model, [Lead(0, 4, start, 0.0)])
    assert max((c.excess for c in found.contrasts), default=0) < 0.2


def test_the_pairs_tried_are_of_classes_that_can_be_examined(patchworld):
    candidate = patchworld.Model()
    told = patchworld.trusted(candidate, candidate)
    told.labels[np.flatnonzero(told.labels == 1)[3:]] = 0
    logits = np.log(told.candidate + 1e-12)
    search = PatchInversion(
        (candidate.answer, candidate.slopes), (candidate.answer, candidate.slopes), told, (logits, logits + 0)
    )
    assert all(source != 1 for source, _ in search.pairs())


def test_the_same_seed_learns_the_same(patchworld):
    pair = patchworld.Model(patchworld.Backdoor(0, 1)), patchworld.Model()
    one, other = (invert(patchworld, *pair) for _ in range(2))
    assert [c.excess for c in one.contrasts] == [c.excess for c in other.contrasts]
    for a, b in zip(one.contrasts, other.contrasts, strict=True):
        np.testing.assert_array_equal(a.judged.lead.patch.pixels, b.judged.lead.patch.pixels)
