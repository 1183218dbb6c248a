"""What a data set is expected to be: a TOML file, read like the policy."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from promotion_gate.core.errors import PolicyError
from promotion_gate.core.policy import DataSource

MAX_BYTES = 5_000_000
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Measure = Literal[
    "labels", "brightness", "contrast", "saturation", "sharpness", "colour", "size", "copies", "unreadable"
]
MEASURES: tuple[Measure, ...] = (
    "labels", "brightness", "contrast", "saturation", "sharpness", "colour", "size", "copies", "unreadable",
)  # fmt: skip


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Reading(_Table):
    """How the data is read, where its own layout does not say. The holdout has the same columns."""

    format: Literal["auto", "imagefolder", "csv", "parquet", "npz"] = "auto"
    split: str = ""
    holdout_split: str = ""
    image_column: str = ""
    label_column: str = ""
    contributor_column: str = "contributor"
    batch_column: str = "batch"

    def source(self, path: str, split: str) -> DataSource:
        """``path`` read this way."""
        return DataSource(path=path, split=split, **self.model_dump(exclude={"split", "holdout_split"}))


class Files(_Table):
    """Images that cannot be read whole: missing, truncated, corrupt, of an unknown kind, or too large.

    And files of the folder that are not read at all, hidden ones or others than images: how many there may be
    besides those that match a shell pattern of ``allow_unread``, in which ``*`` stands for ``/`` too.
    """

    max_unreadable: Count = 0
    max_unread: Count = 0
    allow_unread: list[str] = []


class Labels(_Table):
    """The label set: ``exact`` is all of it, ``allowed`` may be there, ``required`` must be."""

    exact: list[str] | None = None
    allowed: list[str] | None = None
    required: list[str] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if self.exact is not None and (self.allowed is not None or self.required is not None):
            raise ValueError("exact says it all; leave allowed and required out")
        if not (self.exact or self.allowed or self.required):
            raise ValueError("give exact, allowed or required")
        return self


class ImagesExpected(_Table):
    """Sizes in pixels, width / height, Pillow's modes and formats, and bytes of every image."""

    min_width: Size | None = None
    max_width: Size | None = None
    min_height: Size | None = None
    max_height: Size | None = None
    min_aspect: Annotated[float, Field(gt=0)] | None = None
    max_aspect: Annotated[float, Field(gt=0)] | None = None
    sizes: Annotated[list[tuple[Size, Size]], Field(min_length=1)] | None = None
    modes: Annotated[list[str], Field(min_length=1)] | None = None
    formats: Annotated[list[str], Field(min_length=1)] | None = None
    max_bytes: Size | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for what in ("width", "height", "aspect"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{what} is above max_{what}: no image could meet it")
        return self


class Likeness(_Table):
    """When images count as near duplicates: bits of the perceptual hash, and grey levels at 8 x 8."""

    near_bits: Annotated[int, Field(ge=0, le=16)] = 5
    near_grey_levels: Annotated[float, Field(gt=0, le=64)] = 8.0


class Duplicates(_Table):
    """Rows that may repeat an earlier one, and images that may stand under several labels."""

    max_exact: Count | None = None
    max_near: Count | None = None
    max_across_labels: Count | None = 0
    max_near_across_labels: Count | None = None


class Leakage(_Table):
    """Rows that may show what an image of the holdout shows."""

    max_exact: Count = 0
    max_near: Count = 0


class Balance(_Table):
    """``min_rows`` of every class; the largest class may be ``max_ratio`` times the smallest."""

    min_rows: Count | None = None
    max_ratio: Annotated[float, Field(ge=1)] | None = None


class Previous(_Table):
    """Against the previous version: labels that come, go or change their share, and rows labelled anew.

    A label's share has shifted among the rows that were added, or among those taken out, where an exact test
    says so at the ``false_discovery_rate`` and it is larger or smaller by at least ``min_change`` of itself.
    """

    max_new_labels: Count = 0
    max_vanished_labels: Count = 0
    max_shifted_labels: Count = 0
    max_relabelled: Count = 0
    false_discovery_rate: Rate = 0.01
    min_change: Annotated[float, Field(ge=0)] = 0.25


class Drift(_Table):
    """Batches and contributors that are unlike the others.

    Of each value of ``columns`` with at least ``min_rows`` rows every one of ``measures`` is compared with
    the rest. It has drifted where the test says so at the ``false_discovery_rate`` and the change is of a
    size: a mean standing of ``min_standing`` away from the middle (0.5 at most), or a share that is
    ``min_change`` of itself larger or smaller and two points at least.
    """

    columns: Annotated[list[Literal["contributor", "batch"]], Field(min_length=1)] = ["contributor", "batch"]
    measures: Annotated[list[Measure], Field(min_length=1)] = list(MEASURES)
    max_drifted: Count = 0
    min_rows: Annotated[int, Field(ge=2)] = 20
    false_discovery_rate: Rate = 0.01
    min_standing: Annotated[float, Field(ge=0, le=0.5)] = 0.15
    min_change: Annotated[float, Field(ge=0)] = 0.5


class Expectations(_Table):
    """A whole file. A table that is left out is not judged, but for ``files``, which always is."""

    version: Literal[1]
    data: Reading = Reading()
    likeness: Likeness = Likeness()
    files: Files = Files()
    labels: Labels | None = None
    images: ImagesExpected | None = None
    duplicates: Duplicates | None = None
    leakage: Leakage | None = None
    balance: Balance | None = None
    previous: Previous | None = None
    drift: Drift | None = None
    digest: str = Field(default="", exclude=True)


def parse_expectations(text: str, name: str = "expect.toml", *, judging: bool = True) -> Expectations:
    """Read expectations from TOML text; ``name`` is what messages call it.

    Without ``judging`` a file that only says how data is read will do.

    Raises
    ------
    PolicyError: not TOML, empty, an unknown key, or a value out of range.
    """
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{name} is not valid TOML: {error}") from None
    except RecursionError:
        raise PolicyError(f"{name} is nested too deeply") from None
    if not (set(table) - {"version", "data", "likeness"} if judging else table):
        what = "expects nothing" if table else "is empty"
        raise PolicyError(f"{name} {what}", "write one with 'promotion-gate validate DATA --profile'")
    if "digest" in table:
        raise PolicyError(f"{name}: digest: unknown key")
    try:
        return Expectations.model_validate({**table, "digest": hashlib.sha256(text.encode()).hexdigest()})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = {"extra_forbidden": "unknown key", "missing": "missing"}.get(
            first["type"], first["msg"].removeprefix("Value error, ")
        )
        raise PolicyError(f"{name}: {where}: {what}" if where else f"{name}: {what}") from None


def load_expectations(path: Path, *, judging: bool = True) -> Expectations:
    """Read the file at ``path``; see :func:`parse_expectations`."""
    try:
        if not path.is_file():
            raise PolicyError(
                f"no such file: {path}", "write one with 'promotion-gate validate DATA --profile'"
            )
        if path.stat().st_size > MAX_BYTES:
            raise PolicyError(f"{path} is larger than {MAX_BYTES:,} bytes", "is it a list of expectations?")
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise PolicyError(f"{path} is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        raise PolicyError(f"cannot read {path}: {error}") from None
    return parse_expectations(text, name=str(path), judging=judging)
