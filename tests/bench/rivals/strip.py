"""STRIP: a triggered input keeps its class whatever it is blended with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from rivals.interface import Answer, Examined, Floats, Peer
from rivals.network import Network, pixels_of

BLENDS, ROWS, TRUSTED = 20, 600, 150
FALSE_REJECTIONS = 0.01
CHUNK = 12


def strip(examined: Examined) -> Answer:
    """Entropies of training rows blended half and half with trusted images; few bits are suspicious.

    Y. Gao, C. Xu, D. Wang, S. Chen, D. Ranasinghe, S. Nepal, "STRIP: A defence against trojan attacks on deep
    neural networks", ACSAC 2019 (arXiv:1902.06531). Entropy is summed over classes for each blend and
    averaged over 20 blends. A row is flagged below the 1 % quantile of a normal fitted to 150 trusted images'
    entropies, and the figure is the share of rows flagged, of 600 drawn (for time).

    The paper examines inputs of a running model; here the training rows are the inputs, so that a label that
    was learned by heart can look like a trigger. Known to miss source-specific triggers, which need their
    source behind them, faint triggers that blending wipes out, and low attack success.
    """
    rng = examined.random("strip")
    sample = examined.sample(ROWS)
    order = rng.permutation(len(examined.trusted))
    values = blended_entropy(examined.network, examined.images[sample.rows], examined.trusted, rng)
    honest = blended_entropy(examined.network, examined.trusted[order[:TRUSTED]], examined.trusted, rng)
    flagged = values < norm.ppf(FALSE_REJECTIONS, honest.mean(), honest.std())
    return Answer({"share of rows": float(flagged[sample.blind].mean())}, sample.rows, -values, flagged)


def blended_entropy(
    network: Network,
    images: NDArray[np.uint8],
    trusted: NDArray[np.uint8],
    rng: np.random.Generator,
    blends: int = BLENDS,
) -> Floats:
    """Mean entropy in bits of each image's blends with ``blends`` trusted images, (n,)."""
    means = []
    for start in range(0, len(images), CHUNK):
        part = pixels_of(images[start : start + CHUNK])
        behind = pixels_of(trusted[rng.integers(len(trusted), size=len(part) * blends)])
        mixed = 0.5 * part.repeat_interleave(blends, 0) + 0.5 * behind
        p = network.probabilities(mixed).double()
        bits = -(p * torch.log2(p.clamp_min(1e-12))).sum(1)
        means.append(bits.view(len(part), blends).mean(1).numpy())
    return np.concatenate(means)


PEERS = (
    Peer(
        "strip",
        "STRIP, mended",
        "Y. Gao et al., ACSAC 2019, arXiv:1902.06531",
        f"{ROWS} rows, {TRUSTED} trusted, {BLENDS} blends",
        strip,
    ),
)
