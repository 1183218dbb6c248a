"""MM-BD: the class that an arbitrary image can be driven into farthest."""

from __future__ import annotations

import numpy as np
import torch

from rivals.interface import Answer, Examined, Floats, Peer
from rivals.network import Network

STARTS, STEPS, RATE = 5, 80, 0.05


def mm_bd(examined: Examined) -> Answer:
    """-log10 of the chance that the largest of the classes' maximum margins comes from the others' law.

    H. Wang, Z. Xiang, D. J. Miller, G. Kesidis, "MM-BD: Post-training detection of backdoor attacks with
    arbitrary backdoor pattern types using a maximum margin statistic", IEEE S&P 2024 (arXiv:2205.06900). From
    random images, the margin of a class's logit over the best of the others is driven up within the range of
    pixels. A gamma law is fitted to the margins of all classes but the largest. The paper calls a model
    infected when p is below .05. No data is needed.

    Adam, 80 steps from 5 starts a class, where the paper goes on to convergence from 30; on three models 250
    steps from 10 starts named the same class and told less. Known to miss source-specific triggers and more
    than a few target classes; unequal classes give false alarms.
    """
    margins = largest_margins(examined.network, examined.classes, examined.images.shape[1:3], examined.seed)
    return Answer({"-log10 p": outlier_log_p(margins)})


def largest_margins(
    network: Network,
    classes: int,
    size: tuple[int, ...],
    seed: int,
    *,
    starts: int = STARTS,
    steps: int = STEPS,
) -> Floats:
    """The largest margin found for every class, (classes,)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((classes * starts, 3, *size), generator=generator).requires_grad_()
    own = torch.arange(classes).repeat_interleave(starts)
    optimiser = torch.optim.Adam([images], lr=RATE)
    best = torch.full((len(own),), -torch.inf)
    for _ in range(steps):
        margins = _margins(network(images), own)
        best = torch.maximum(best, margins.detach())
        (images.grad,) = network.slopes(-margins.sum(), [images], len(own))
        optimiser.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    return best.view(classes, starts).max(1).values.double().numpy()


def outlier_log_p(margins: Floats) -> float:
    """-log10 p that the largest of the margins is no larger than the others allow; at most 300.

    The others' gamma law, and the largest of as many draws as there are classes.
    """
    from scipy.stats import gamma

    largest = int(margins.argmax())
    others = np.maximum(np.delete(margins, largest), 1e-6)
    if np.ptp(others) == 0:
        return 0.0
    shape, _, scale = gamma.fit(others, floc=0)
    above = gamma.sf(margins[largest], shape, scale=scale)
    p = -np.expm1(len(margins) * np.log1p(-min(above, 1 - 1e-16)))
    return float(-np.log10(max(p, 1e-300)))


def _margins(logits: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    mine = logits.gather(1, own[:, None])[:, 0]
    others = logits.scatter(1, own[:, None], -torch.inf).max(1).values
    return mine - others


PEERS = (
    Peer(
        "mm-bd",
        "MM-BD",
        "H. Wang et al., IEEE S&P 2024, arXiv:2205.06900",
        f"{STARTS} starts, {STEPS} steps, rate {RATE}",
        mm_bd,
    ),
)
