"""The policy: a TOML file that says what a candidate must measure up to.

The digest of the file's bytes stands in every verdict, so that a decision can be tied to the exact rules
that made it.
"""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from promotion_gate.core.errors import PolicyError
from promotion_gate.core.production import Production, Table
from promotion_gate.core.types import Rule

MAX_POLICY_BYTES = 1_000_000


class DataSource(Table):
    """Where a labelled image set lies and how to read it.

    ``path`` is a local path or any fsspec URL; a relative path is relative to the policy file.
    ``format`` ``auto`` goes by what is found there.
    """

    path: str = Field(min_length=1)
    format: Literal["auto", "imagefolder", "csv", "parquet", "npz"] = "auto"
    split: str = ""
    image_column: str = ""
    label_column: str = ""
    contributor_column: str = "contributor"
    batch_column: str = "batch"


class Data(Table):
    """The trusted holdout, the training set if it is to be had, and the class names in logit order.

    ``suspects`` are images that production saw, labelled with what was predicted: see
    ``promotion-gate quarantine``.
    """

    holdout: DataSource
    training: DataSource | None = None
    suspects: DataSource | None = None
    class_names: list[str] | None = None


class ModelInput(Table):
    """Overrides of what the model's signature and metadata say of its input.

    An image goes in as ``(pixel / scale - mean) / std``, with pixel values 0 to 255.
    """

    layout: Literal["NCHW", "NHWC"] | None = None
    height: Annotated[int, Field(ge=1, le=4096)] | None = None
    width: Annotated[int, Field(ge=1, le=4096)] | None = None
    channels: Literal[1, 3] | None = None
    scale: Annotated[float, Field(gt=0)] | None = None
    mean: list[float] | None = None
    std: list[Annotated[float, Field(gt=0)]] | None = None
    embedding_layer: str | None = None


class Sandbox(Table):
    """How the candidate's code is confined, and how much it may use.

    ``best`` takes the strongest confinement the host offers; ``required`` holds a candidate where
    neither bubblewrap nor unshare can take the network away.
    """

    mode: Literal["best", "required"] = "best"
    memory_gib: Annotated[float, Field(gt=0, le=4096)] = 4.0
    seconds: Annotated[float, Field(gt=0, le=7 * 86400)] = 900.0
    threads: Annotated[int, Field(ge=1, le=1024)] = 1


class Bound(Table):
    """The range a metric must stay in, and what a breach does."""

    min: float | None = None
    max: float | None = None
    otherwise: Literal["reject", "hold"] = "reject"

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a bound needs min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is above max: no value could pass")
        return self


class CheckPolicy(Table):
    """What the policy asks of one check; ``options`` are the check's own and validated by it."""

    required: bool = True
    bounds: dict[str, Bound] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)


class Policy(Table):
    """A whole policy. Build one with :func:`load_policy` or :func:`parse_policy`."""

    version: Literal[1]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: Data
    input: ModelInput = ModelInput()
    sandbox: Sandbox = Sandbox()
    production: Production = Production()
    checks: dict[str, CheckPolicy] = Field(min_length=1)
    unsafe_allow_pickle: bool = False
    text: str = Field(default="", exclude=True)
    digest: str = Field(default="", exclude=True)
    folder: str = Field(default=".", exclude=True)

    @field_validator("checks")
    @classmethod
    def _no_own_checks(cls, checks: dict[str, CheckPolicy]) -> dict[str, CheckPolicy]:
        own = sorted({"artifacts", "model", "inputs", "champion", "registry"} & checks.keys())
        if own:
            raise ValueError(f"{own[0]} is always checked and cannot be configured")
        return checks

    @field_validator("checks")
    @classmethod
    def _judges_something(cls, checks: dict[str, CheckPolicy]) -> dict[str, CheckPolicy]:
        if not any(check.bounds for check in checks.values()):
            raise ValueError("no check has a bound: nothing could ever be refused")
        return checks

    def rules(self) -> Iterator[Rule]:
        """Every bound, in the order of the file."""
        for name, check in self.checks.items():
            for metric, bound in check.bounds.items():
                yield Rule(
                    name,
                    metric,
                    -math.inf if bound.min is None else bound.min,
                    math.inf if bound.max is None else bound.max,
                    bound.otherwise,
                )

    @property
    def required(self) -> frozenset[str]:
        return frozenset(name for name, check in self.checks.items() if check.required)

    @property
    def unsafe(self) -> tuple[str, ...]:
        """The names of the switch-offs in use."""
        return ("unsafe_allow_pickle",) if self.unsafe_allow_pickle else ()


def parse_policy(text: str, *, name: str = "policy", folder: Path = Path()) -> Policy:
    """Read a policy from TOML text; ``name`` is what messages call it, ``folder`` its home.

    Raises
    ------
    PolicyError: not TOML, an unknown key, a value out of range, or a policy that judges nothing.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{name} is not valid TOML: {error}") from None
    if not table:
        raise PolicyError(f"{name} is empty", "write one with 'promotion-gate init'")
    reserved = {"text", "digest", "folder"} & table.keys()
    if reserved:
        raise PolicyError(f"{name}: unknown key {min(reserved)!r}", "remove it")
    try:
        return Policy.model_validate(
            {
                **table,
                "text": text,
                "digest": hashlib.sha256(text.encode()).hexdigest(),
                "folder": str(folder),
            }
        )
    except ValidationError as error:
        raise PolicyError(f"{name}: {_first_error(error)}") from None


def load_policy(path: Path) -> Policy:
    """Read the policy file at ``path``; see :func:`parse_policy`."""
    try:
        if path.stat().st_size > MAX_POLICY_BYTES:
            raise PolicyError(f"{path} is larger than {MAX_POLICY_BYTES:,} bytes", "is it a policy?")
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise PolicyError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise PolicyError(
            f"cannot read the policy {path}: {error.strerror}", "write one with 'promotion-gate init'"
        ) from None
    except ValueError as error:
        raise PolicyError(f"cannot read the policy {str(path)!r}: {error}") from None
    return parse_policy(text, name=str(path), folder=path.resolve().parent)


def _first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    what = {"extra_forbidden": "unknown key", "missing": "missing"}.get(
        first["type"], first["msg"].removeprefix("Value error, ")
    )
    more = error.error_count() - 1
    tail = f" (and {more} more)" if more else ""
    return f"{where}: {what}{tail}" if where else f"{what}{tail}"


def options_error(check: str, error: ValidationError) -> PolicyError:
    """Turn a check's rejection of its ``options`` table into a policy error that names the key."""
    return PolicyError(f"checks.{check}.options.{_first_error(error)}")


def known_names(policy: Policy, metrics_of: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse a policy that names a check or metric which does not exist: it would never be judged.

    Raises
    ------
    PolicyError: with the nearest existing names.
    """
    for name, check in policy.checks.items():
        if name not in metrics_of:
            raise PolicyError(f"checks.{name}: no such check", f"there are {', '.join(sorted(metrics_of))}")
        for metric in check.bounds:
            if metric not in metrics_of[name]:
                known = ", ".join(sorted(metrics_of[name])) or "none"
                raise PolicyError(f"checks.{name}.bounds.{metric}: no such metric", f"it has {known}")
