import numpy as np
import pytest

from promotion_gate.detect.ridge import RIDGES, left_out


def told(seed, rows=80):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, rows)
    features = rng.integers(0, 100, (rows, 6))
    features[np.arange(rows), labels] += 120
    return features.astype(np.uint8), labels


def test_leaving_out_is_what_fitting_without_the_row_gives(monkeypatch):
    monkeypatch.setattr("promotion_gate.detect.ridge.RIDGES", (1e-2,))
    features, labels = told(0)
    found = left_out([features], labels, 3)
    values = (features - features.mean(axis=0)) / np.sqrt(features.var(axis=0).sum())
    values = np.c_[values, np.ones(len(values))]
    wanted = np.eye(3)[labels]
    for row in range(0, len(labels), 7):
        kept = np.delete(np.arange(len(labels)), row)
        gram = values[kept].T @ values[kept] + 1e-2 * len(labels) * np.eye(values.shape[1])
        answer = values[row] @ np.linalg.solve(gram, values[kept].T @ wanted[kept])
        own = answer[labels[row]]
        answer[labels[row]] = -np.inf
        assert found.margin[row] == pytest.approx(answer.max() - own, abs=1e-9)
        assert found.other[row] == answer.argmax()


def test_a_flipped_label_stands_out():
    features, labels = told(1, rows=200)
    labels[17] = (labels[17] + 1) % 3
    found = left_out([features, features[:, :2]], labels, 3)
    assert found.margin.argmax() == 17
    assert found.accuracy > 0.9


def test_constant_features_and_lone_labels_do_no_harm():
    found = left_out([np.full((5, 3), 7, np.uint8)], np.array([0, 0, 0, 1, 2]), 4)
    assert np.isfinite(found.margin).all()
    assert len(RIDGES) > 2
