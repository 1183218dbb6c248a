"""cleanlab: rows whose label the model itself doubts."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.special import softmax

from rivals.interface import Answer, Examined, Peer


def label_issues(examined: Examined) -> Answer:
    """``find_label_issues`` of cleanlab on the candidate's own predictions.

    C. G. Northcutt, L. Jiang, I. L. Chuang, "Confident learning: Estimating uncertainty in dataset labels",
    JAIR 2021 (arXiv:1911.00068). Figures: the share of rows that are issues, and the most issues of one pair
    (given label, predicted class). Rows are ranked by self confidence, 1 - p(given label).

    The paper asks for predictions on rows that the model was not trained on; a gate has the candidate alone,
    so these are in-sample. It finds labels that are wrong and were not learned; a backdoor is learned.
    """
    from cleanlab.filter import find_label_issues

    logits, _ = examined.network.answers(examined.images)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flagged = np.asarray(
            find_label_issues(labels=examined.labels, pred_probs=probabilities, n_jobs=1), dtype=bool
        )
    given, said = examined.labels[flagged], probabilities[flagged].argmax(axis=1)
    pairs = np.bincount(given * examined.classes + said, minlength=1)
    doubt = 1 - probabilities[np.arange(len(examined.labels)), examined.labels]
    return Answer(
        {"share of rows": float(flagged.mean()), "most of one pair": float(pairs.max())},
        np.arange(len(flagged)),
        doubt,
        flagged,
    )


PEERS = (
    Peer(
        "cleanlab",
        "cleanlab",
        "C. G. Northcutt et al., JAIR 2021, arXiv:1911.00068",
        "find_label_issues, in-sample",
        label_issues,
        "cleanlab",
    ),
)
