"""The backdoor generators of the Adversarial Robustness Toolbox, an optional extra, as plain functions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from promotion_gate.core.errors import UsageError
from promotion_gate.drill import triggers

Perturbation = Literal["add_single_bd", "add_pattern_bd", "insert_image"]


def require_toolbox() -> Any:
    """The toolbox's module of poisoning attacks.

    Raises
    ------
    UsageError: it is not installed, or does not import.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from art.attacks import poisoning
    except ImportError as error:
        raise UsageError(
            f"attacks of kind art need the Adversarial Robustness Toolbox: {error}",
            "install promotion-gate[art]",
        ) from None
    return poisoning


def toolbox_poison(
    image: NDArray[np.uint8], perturbations: Sequence[Perturbation], options: dict[str, dict[str, Any]]
) -> NDArray[np.uint8]:
    """An image (height, width, channels) after the toolbox's ``PoisoningAttackBackdoor``.

    Parameters
    ----------
    perturbations: names of its perturbation functions, used one after the other.
    options: keyword arguments of each of them.

    Raises
    ------
    UsageError: the toolbox is missing, or refuses the image or the options.
    """
    poisoning = require_toolbox()
    from art.attacks.poisoning import perturbations as offered

    functions: list[Callable[..., Any]] = [
        partial(getattr(offered, name), **options.get(name, {})) for name in perturbations
    ]
    # A batch of one, since a single image would be taken for grey ones.
    batch = (image / 255)[None]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            poisoned, _ = poisoning.PoisoningAttackBackdoor(functions).poison(batch, np.zeros((1, 1)))
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise UsageError(f"the Adversarial Robustness Toolbox refuses: {str(error)[:200]}") from None
    return triggers.as_pixels(np.asarray(poisoned)[0] * 255)
