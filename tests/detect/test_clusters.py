import numpy as np
import pytest

from promotion_gate.detect.clusters import class_clusters, class_spectra, spectral_distances

WIDTH, ROWS, TRUSTED = 16, 300, 80


class Embeddings:
    """Two classes of Gaussian clouds with unequal axes; some rows of class 1 form a group of their own."""

    def __init__(self, poisoned=25, seed=0, off=0.0):
        rng = np.random.default_rng(seed)
        self.axes = np.geomspace(5, 0.3, WIDTH)
        self.middles = off + 4 * np.eye(WIDTH)[:2]
        self.labels = np.repeat([0, 1], ROWS)
        self.trusted_labels = np.repeat([0, 1], TRUSTED)
        self.rows = self.cloud(rng, self.labels)
        self.trusted = self.cloud(rng, self.trusted_labels)
        self.poisoned = np.arange(ROWS, ROWS + poisoned)
        self.rows[self.poisoned, -3:] += 3

    def cloud(self, rng, labels):
        noise = rng.normal(0, 1, (len(labels), WIDTH)) * self.axes
        return (self.middles[labels] + noise).astype(np.float32)

    def clusters(self, **rest):
        return class_clusters(self.rows, self.labels, self.trusted, self.trusted_labels, **rest)

    def spectra(self, **rest):
        return class_spectra(self.rows, self.labels, self.trusted, self.trusted_labels, **rest)


@pytest.mark.parametrize("seed", range(3))
def test_a_group_that_trusted_images_keep_out_of_is_found_whole(seed):
    bank = Embeddings(seed=seed)
    lead = next(clusters for clusters in bank.clusters() if clusters.apart)
    assert lead.label == 1
    assert sorted(lead.members.tolist()) == bank.poisoned.tolist()
    assert lead.trusted_inside == 0
    assert lead.p < 0.05


@pytest.mark.parametrize("seed", range(3))
def test_clean_classes_have_no_such_group(seed):
    found = Embeddings(0, seed).clusters()
    assert [clusters.label for clusters in found] != []
    assert not any(clusters.apart for clusters in found)


def test_a_group_that_trusted_images_share_is_not_apart():
    bank = Embeddings()
    bank.trusted[TRUSTED : TRUSTED + 8, -3:] += 3
    assert not any(clusters.apart for clusters in bank.clusters())


def test_few_rows_fitted_still_judge_all_rows():
    bank = Embeddings(60)
    lead = next(clusters for clusters in bank.clusters(fit_rows=120) if clusters.apart)
    assert set(bank.poisoned.tolist()) == set(lead.members.tolist())


def test_same_seed_same_clusters():
    first, second = (
        [(c.label, c.silhouette, c.members.tolist()) for c in Embeddings().clusters(seed=3)] for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("rows", [1, 2, 19, 25])
def test_tiny_and_constant_classes_are_passed_over(rows):
    constant = np.zeros((rows, WIDTH), np.float32)
    labels = np.zeros(rows, np.int64)
    empty = np.zeros((0, WIDTH), np.float32), np.zeros(0, np.int64)
    assert class_clusters(constant, labels, *empty) == []
    assert all(spectrum.beyond == 0 for spectrum in class_spectra(constant, labels, *empty))


def test_a_class_without_trusted_images_is_never_called_apart():
    bank = Embeddings()
    keep = bank.trusted_labels == 0
    found = class_clusters(bank.rows, bank.labels, bank.trusted[keep], bank.trusted_labels[keep])
    assert {clusters.label for clusters in found} == {0, 1}
    assert not any(clusters.apart for clusters in found)
    spectra = class_spectra(bank.rows, bank.labels, bank.trusted[keep], bank.trusted_labels[keep])
    assert next(s for s in spectra if s.label == 1).p == 1


def test_poisoned_rows_lie_beyond_every_trusted_image():
    bank = Embeddings()
    lead = bank.spectra()[0]
    assert lead.label == 1
    assert set(lead.outliers[:20].tolist()) <= set(bank.poisoned.tolist())
    assert lead.p < 1e-3
    assert lead.ratio > 2


def test_whitening_by_trusted_images_finds_what_natural_variety_hides():
    bank = Embeddings()
    own = bank.labels == 1
    caught = {}
    for whitened in (True, False):
        far = spectral_distances(bank.rows, bank.labels, bank.trusted, bank.trusted_labels, whitened=whitened)
        head = np.flatnonzero(own)[np.argsort(-far[own])[:25]]
        caught[whitened] = len(set(head.tolist()) & set(bank.poisoned.tolist()))
    assert caught[True] >= 20 > 10 > caught[False]


def test_a_cloud_far_from_the_origin_is_centred():
    near, far = Embeddings().spectra()[0], Embeddings(off=3000).spectra()[0]
    assert (near.label, near.beyond) == (far.label, far.beyond)
    assert near.ratio == pytest.approx(far.ratio, rel=1e-2)


def test_clean_spectra_are_unremarkable():
    assert all(spectrum.p > 0.01 for spectrum in Embeddings(0).spectra())
    assert all(spectrum.ratio < 2 for spectrum in Embeddings(0).spectra())


def test_embeddings_may_be_a_memory_map(tmp_path):
    bank = Embeddings()
    np.save(tmp_path / "e.npy", bank.rows)
    mapped = np.load(tmp_path / "e.npy", mmap_mode="r")
    found = class_clusters(mapped, bank.labels, bank.trusted, bank.trusted_labels)
    assert [c.silhouette for c in found] == [c.silhouette for c in bank.clusters()]
