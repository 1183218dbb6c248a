"""Three defences of the Adversarial Robustness Toolbox, as it ships them and with their faults mended.

Mended from outside: the toolbox's own code runs, on the layer and with the centring that the papers ask for.
"""

from __future__ import annotations

import os
import warnings
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import entropy
from torch import nn

from rivals.interface import Answer, Examined, Floats, Peer, Rows
from rivals.network import Network, pixels_of

DISTRIBUTION = "adversarial-robustness-toolbox"
CLUSTERING = "B. Chen et al., SafeAI at AAAI 2019, arXiv:1811.03728"
SPECTRAL = "B. Tran, J. Li, A. Madry, NeurIPS 2018, arXiv:1811.00636"
STRIP = "Y. Gao et al., ACSAC 2019, arXiv:1902.06531"
TOP = 0.05
"""Share of a class's rows whose mean spectral value is held against the class's median."""
STRIP_ROWS, STRIP_TRUSTED = 600, 150


def activation_defence(examined: Examined, *, mended: bool) -> Answer:
    """Activation clustering: two clusters in every class's activations, poisoned where one stands apart.

    As shipped: ``detect_poison()`` with its defaults. It reads the last module, that is the logits, and calls
    the smaller cluster of every class poisoned, so that a clean model loses a third of its rows or more; the
    figure is the most uneven split, 1 - the share of the smaller cluster. Mended: the penultimate layer, and
    ``silhouette-scores``; the figure is the largest silhouette, and flagged are small clusters of classes
    over the toolbox's own thresholds (.1, and a share of .35), read from its clusters since its list of clean
    rows leaves part of such a class unset.

    Known to miss what does not form a group: few rows, triggers of one source class, and attacks that train
    against it (Qi et al., ICLR 2023).
    """
    toolbox = _toolbox()
    defence = toolbox.ActivationDefence(
        _classifier(examined, activations=examined.network.answers(examined.images)[1] if mended else None),
        _floats(examined.images),
        _one_hot(examined.labels, examined.classes),
    )
    analysis = "silhouette-scores" if mended else "smaller"
    np.random.seed(examined.seed)
    report, _ = defence.detect_poison(
        nb_clusters=2, nb_dims=10, reduce="PCA", clustering_method="KMeans", cluster_analysis=analysis
    )
    suspicion, flagged = np.zeros(len(examined.labels)), np.zeros(len(examined.labels), dtype=bool)
    for label, clusters in enumerate(defence.clusters_by_class):
        sizes = np.bincount(clusters, minlength=2)
        share = sizes.min() / sizes.sum()
        small = np.flatnonzero(examined.labels == label)[clusters == sizes.argmin()]
        apart = float(report[f"class_{label}"]["avg_silhouette_score"]) if mended else 1 - share
        suspicion[small] = apart
        flagged[small] = not mended or (apart > 0.1 and share < 0.35)
    name = "silhouette" if mended else "uneven split"
    return Answer({name: float(suspicion.max())}, np.arange(len(flagged)), suspicion, flagged)


def spectral_signature(examined: Examined, *, mended: bool) -> Answer:
    """Spectral signatures: how far each row lies along the direction in which its class varies most.

    As shipped: ``detect_poison()`` with its defaults, on the logits, with rows projected without taking the
    class's mean off, so that what lies near the origin looks honest. Mended: penultimate activations, each
    less its class's mean. Both flag 1.5 times the expected share of poison, which is .33 unless told
    otherwise: half of every class. The paper judges no model; the figure is the mean of the highest 5 % of a
    class over the class's median, the largest over classes, and rows are compared between classes by their
    value over that median.

    Known to miss poison that is no large part of its class's variance: source-specific triggers, and those of
    Qi et al., ICLR 2023.
    """
    toolbox = _toolbox()
    activations = None
    if mended:
        activations = examined.network.answers(examined.images)[1].astype(np.float64)
        for label in np.unique(examined.labels):
            own = examined.labels == label
            activations[own] -= activations[own].mean(axis=0)
    classifier = _classifier(examined, activations=activations)
    pixels = _floats(examined.images)
    defence = toolbox.SpectralSignatureDefense(
        classifier, pixels, _one_hot(examined.labels, examined.classes)
    )
    _, clean = defence.detect_poison()
    forwards = examined.network.effort.forwards
    last = len(classifier.layer_names) - 1
    features = np.asarray(classifier.get_activations(pixels, layer=last, batch_size=128))
    # Asked once more only because the defence keeps most of its values to itself.
    examined.network.effort.forwards = forwards
    suspicion, figure = np.zeros(len(clean)), 0.0
    for label in np.unique(examined.labels):
        own = np.flatnonzero(examined.labels == label)
        values = defence.spectral_signature_scores(features[own])[:, 0]
        suspicion[own] = values / max(float(np.median(values)), 1e-12)
        top = np.sort(suspicion[own])[-max(1, round(TOP * len(own))) :]
        figure = max(figure, float(top.mean()))
    return Answer({"spectral ratio": figure}, np.arange(len(clean)), suspicion, np.array(clean) == 0)


def strip_as_shipped(examined: Examined) -> Answer:
    """STRIP as the toolbox ships it, on training rows as inputs and blended with trusted images.

    ``num_samples`` 20 and ``false_acceptance_rate`` .01, its defaults. It takes logits for probabilities, so
    a softmax is put on for it, and sums its entropies along the samples instead of along the classes. The
    figure is the share of rows on which the model then abstains. At most 600 rows are tried, for time. See
    :mod:`rivals.strip` for the method and what it misses.
    """
    _toolbox()
    from art.defences.transformer.poisoning import STRIP as toolbox_strip

    sample = examined.sample(STRIP_ROWS)
    asked: list[NDArray[np.float32]] = []
    guarded = toolbox_strip(_classifier(examined, head=nn.Softmax(dim=1)))()
    predict = guarded.predict_fn

    def recorded(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        answer = predict(pixels.astype(np.float32))
        asked.append(answer)
        return answer

    guarded.predict_fn = recorded
    np.random.seed(examined.seed)
    order = examined.random("strip").permutation(len(examined.trusted))[:STRIP_TRUSTED]
    guarded.mitigate(_floats(examined.trusted[order]))
    asked.clear()
    said = guarded.predict(_floats(examined.images[sample.rows]))
    # The first answer is the one on the rows themselves; then come the blends of each row.
    values = np.array([np.sum(entropy(a, base=2, axis=0)) / guarded.num_samples for a in asked[1:]])
    flagged = (said == 0).all(axis=1)
    share = float(flagged[sample.blind].mean())
    return Answer({"share of rows": share}, sample.rows, -values, flagged)


def _toolbox() -> Any:
    """The toolbox's detectors, without its progress bars and warnings."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.defences.detector import poison
    return poison


def _classifier(
    examined: Examined, *, activations: NDArray[Any] | None = None, head: nn.Module | None = None
) -> Any:
    """The toolbox's wrapper; with ``activations`` it answers these for whatever layer it is asked for."""
    from art.estimators.classification import PyTorchClassifier

    class Penultimate(PyTorchClassifier):
        def get_activations(self, x: Any, layer: Any = None, batch_size: int = 128, framework: bool = False):
            assert activations is not None
            assert len(x) == len(activations)
            return activations

    network: Network = examined.network
    kind = PyTorchClassifier if activations is None else Penultimate
    layers = network.layers if head is None else nn.Sequential(*network.layers, head)
    return kind(
        model=layers,
        loss=nn.CrossEntropyLoss(),
        input_shape=(3, *examined.images.shape[1:3]),
        nb_classes=examined.classes,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


def _floats(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(pixels_of(images).numpy())


def _one_hot(labels: Rows, classes: int) -> Floats:
    return np.eye(classes)[labels]


PEERS = tuple(
    Peer(name, title, paper, settings, examine, DISTRIBUTION)
    for name, title, paper, settings, examine in (
        (
            "art-activation",
            "ART ActivationDefence",
            CLUSTERING,
            "defaults",
            partial(activation_defence, mended=False),
        ),
        (
            "art-activation-mended",
            "ART ActivationDefence, mended",
            CLUSTERING,
            "silhouettes, penultimate layer",
            partial(activation_defence, mended=True),
        ),
        (
            "art-spectral",
            "ART SpectralSignatureDefense",
            SPECTRAL,
            f"defaults; top {TOP}",
            partial(spectral_signature, mended=False),
        ),
        (
            "art-spectral-mended",
            "ART SpectralSignatureDefense, mended",
            SPECTRAL,
            f"centred, penultimate layer; top {TOP}",
            partial(spectral_signature, mended=True),
        ),
        (
            "art-strip",
            "ART STRIP",
            STRIP,
            f"defaults, {STRIP_ROWS} rows, {STRIP_TRUSTED} trusted",
            strip_as_shipped,
        ),
    )
)
