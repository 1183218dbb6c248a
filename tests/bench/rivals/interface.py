"""What a peer is given of one model, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rivals.network import Network

Images = NDArray[np.uint8]
Rows = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Sample:
    """Training rows for a peer that cannot look at all of them.

    ``rows`` were drawn without knowing which are poisoned, where ``blind``, and only these may count for the
    model's figure. The others are further poisoned rows, so that there are enough to rank.
    """

    rows: Rows
    blind: Flags


@dataclass(frozen=True, slots=True)
class Examined:
    """One candidate with what the gate had: its training rows, with labels as given, and the trusted holdout.

    ``images`` uint8 (n, H, W, 3), ``labels`` (n,); the same of ``trusted``. ``carriers`` says which training
    rows are poisoned: for drawing a :class:`Sample` and for counting afterwards, never for a peer's answer.
    """

    network: Network = field(repr=False)
    images: Images = field(repr=False)
    labels: Rows = field(repr=False)
    trusted: Images = field(repr=False)
    trusted_labels: Rows = field(repr=False)
    carriers: Flags = field(repr=False)
    classes: int
    seed: int

    def random(self, purpose: str) -> np.random.Generator:
        """The same stream for the same model and purpose."""
        return np.random.default_rng([self.seed, *purpose.encode()])

    def sample(self, most: int, extra: int = 100) -> Sample:
        """At most ``most`` rows drawn blindly, and up to ``extra`` poisoned rows that were not drawn."""
        rng = self.random("sample")
        drawn = np.sort(rng.permutation(len(self.labels))[:most])
        left = np.setdiff1d(np.flatnonzero(self.carriers), drawn)
        further = np.sort(rng.permutation(left)[:extra])
        rows = np.concatenate([drawn, further])
        return Sample(rows, np.arange(len(rows)) < len(drawn))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a peer makes of one model.

    Attributes
    ----------
    figures: by name, each larger the more poisoned the model looks.
    rows: the training rows that it looked at; None where it names none.
    suspicion: of each of these rows, larger for more suspect.
    flagged: which of them it calls poisoned.
    """

    figures: Mapping[str, float]
    rows: Rows | None = None
    suspicion: Floats | None = None
    flagged: Flags | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """A method: its name on the command line and its title in the table, its paper, how it is run.

    ``needs`` is the distribution that must be installed, if any. ``settings`` decide what comes out: answers
    of other settings are not used again.
    """

    name: str
    title: str
    paper: str
    settings: str
    examine: Callable[[Examined], Answer] = field(repr=False)
    needs: str = ""
