"""A drill's scenario: a TOML file that says what is poisoned how, trained how and gated by which policy."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from promotion_gate.core.errors import PolicyError, UsageError
from promotion_gate.core.policy import DataSource, Policy, load_policy, parse_policy
from promotion_gate.drill.attacks import AnyAttack
from promotion_gate.drill.poison import parse_attack

MAX_BYTES = 1_000_000
NEED_TRAINING_DATA = (
    "activation-clustering",
    "batch-anomaly",
    "label-concentration",
    "patch-transplant",
    "residual-transplant",
    "spectral-signature",
)
NAME = r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,59}$"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DrillData(_Table):
    """What a drill trains on and what the gate trusts: one of three.

    Drawn signs (``renderer``), real images from ``GATE_TEST_DATA`` (``prepared``), or data sets of the team's
    own (``training`` and ``holdout``, relative to the scenario's file). The numbers of images are for the
    first two; ``seed`` draws other images or splits them otherwise.
    """

    renderer: Literal["signs"] | None = None
    prepared: Literal["gtsrb", "digits"] | None = None
    training: DataSource | None = None
    holdout: DataSource | None = None
    training_images: Annotated[int, Field(ge=100, le=1_000_000)] = 6000
    holdout_images: Annotated[int, Field(ge=50, le=1_000_000)] = 2000
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        own = self.training is not None or self.holdout is not None
        if own and (self.training is None or self.holdout is None):
            raise ValueError("give both training and holdout")
        if (self.renderer is not None) + (self.prepared is not None) + own != 1:
            raise ValueError(
                'give renderer = "signs", prepared = "gtsrb" or "digits", or training and holdout'
            )
        return self

    @property
    def title(self) -> str:
        """What to call the data in a report."""
        return self.renderer or self.prepared or (self.training.path if self.training else "")

    @property
    def prepared_folder(self) -> str:
        """What to call the folder of drawn or prepared images: one name for the same images."""
        told = self.model_dump_json(exclude={"training", "holdout"})
        return hashlib.sha256(told.encode()).hexdigest()[:16]


class Training(_Table):
    """How the candidate and its champion are trained: a built-in recipe, or the team's own command.

    The words of ``command`` may hold ``{data}`` and ``{name}``, which it must have, and ``{holdout}``,
    ``{seed}`` and ``{tracking_uri}``. It runs in the folder of the scenario's file with MLflow's environment
    variables set to the drill's registry, and must register one version of the model ``{name}`` there before
    ``timeout`` seconds are over. ``from = "champion"`` fine-tunes the champion, by the recipe alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    recipe: Literal["small-cnn", "resnet"] = "small-cnn"
    epochs: Annotated[int, Field(ge=1, le=1000)] = 8
    champion_epochs: Annotated[int, Field(ge=1, le=1000)] = 8
    start: Annotated[Literal["scratch", "champion"], Field(alias="from")] = "scratch"
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    size: Annotated[int, Field(ge=16, le=512, multiple_of=8)] = 32
    champion_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    command: tuple[str, ...] = ()
    timeout: Annotated[float, Field(gt=0, le=7 * 86400)] = 3600.0

    @field_validator("command")
    @classmethod
    def _takes_data_and_name(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        for needed in ("{data}", "{name}"):
            if command and not any(needed in word for word in command):
                raise ValueError(f"no word of the training command holds {needed}")
        return command

    @model_validator(mode="after")
    def _recipe_or_command(self) -> Self:
        if self.command and self.start == "champion":
            raise ValueError('from = "champion" goes with a recipe, not with a command')
        return self

    @property
    def architecture(self) -> str:
        return self.command[0] if self.command else self.recipe


class Gate(_Table):
    """The policy to gate by, as a table; its data sets are replaced by the drill's.

    In the file ``policy`` may be a path, relative to it. Without one it is the starter policy's checks that
    can stop a candidate.
    """

    policy: dict[str, Any] = Field(default_factory=dict)


class Scenario(_Table):
    """A whole scenario. Build one with :func:`load_scenario` or :func:`make_scenario`.

    ``champion`` says whether a clean model is in production when the candidate comes to the gate, and
    ``poisoned_champion`` that it was trained on poison of the same kind. ``training_data`` says whether the
    gate gets to see what the candidate was trained on. ``folder`` is where the file lies.
    """

    name: str = Field(pattern=NAME)
    description: str = ""
    data: DrillData = Field(default_factory=lambda: DrillData(renderer="signs"))
    attack: AnyAttack
    training: Training = Training()
    gate: Gate = Gate()
    champion: bool = True
    poisoned_champion: bool = False
    training_data: bool = True
    folder: str = "."

    @model_validator(mode="after")
    def _champion_there(self) -> Self:
        if self.poisoned_champion and not self.champion:
            raise ValueError("poisoned_champion = true needs champion = true")
        return self

    @property
    def needs_champion(self) -> bool:
        """Whether a champion must be trained: for production, or to start from."""
        return self.champion or self.training.start == "champion"

    @property
    def champion_key(self) -> str:
        """The same for all scenarios that share one champion."""
        told = self.training.model_dump(mode="json", exclude={"epochs", "start", "timeout"})
        attack = self.attack.model_dump(mode="json") if self.poisoned_champion else None
        return json.dumps([self.data.model_dump(mode="json"), told, attack, self.folder], sort_keys=True)

    def key(self, seed: int) -> str:
        """Names one drill: 16 hex digits over everything that decides how it ends."""
        told = self.model_dump(mode="json", exclude={"description", "folder", "gate"}, by_alias=True)
        told["policy"] = self.gate.policy or starter_policy(training_data=self.training_data)
        return hashlib.sha256(json.dumps([told, seed], sort_keys=True).encode()).hexdigest()[:16]

    def policy(self, holdout: DataSource, training: DataSource | None, folder: Path) -> Policy:
        """The policy with the drill's data in it, and every check and metric it names known.

        Raises
        ------
        PolicyError: it is not valid.
        """
        from promotion_gate.checks.registry import chosen_checks

        table = self.gate.policy or starter_policy(training_data=self.training_data)
        if not isinstance(table.get("data", {}), Mapping):
            raise PolicyError(f"the policy of scenario {self.name!r}: data is not a table")
        data = {k: v for k, v in table.get("data", {}).items() if k not in ("holdout", "training")}
        data["holdout"] = holdout.model_dump(exclude_defaults=True)
        if training is not None:
            data["training"] = training.model_dump(exclude_defaults=True)
        made = parse_policy(
            to_toml({**table, "data": data}), name=f"the policy of scenario {self.name!r}", folder=folder
        )
        chosen_checks(made)
        return made


def load_scenario(named: str, overrides: Mapping[str, Any] | None = None, folder: Path = Path()) -> Scenario:
    """A shipped scenario by its name, or one from a TOML file; ``overrides`` go over its tables.

    Parameters
    ----------
    folder: what a relative path is relative to, in ``overrides`` too; and where a command of theirs runs.

    Raises
    ------
    UsageError: no such scenario, not TOML, an unknown key or attack, a value out of range, or a wrong policy.
    """
    shipped = shipped_scenarios()
    path = shipped[named] if named in shipped else folder / named
    if named not in shipped and not named.endswith(".toml"):
        raise UsageError(f"no scenario {named!r}", f"there are {', '.join(shipped)}, or give a .toml file")
    own, changes, home = read_table(path, "the scenario"), overrides or {}, path.resolve().parent
    called = str(path)
    table = merged(_placed(own, home, called), _placed(changes, folder.resolve(), called))
    training = changes.get("training")
    if named in shipped or (isinstance(training, Mapping) and "command" in training):
        home = folder.resolve()
    return make_scenario(table, home, str(path))


def make_scenario(table: Mapping[str, Any], folder: Path, called: str) -> Scenario:
    """A scenario from a parsed table; see :func:`load_scenario`. ``called`` names it in messages."""
    table = {"data": {"renderer": "signs"}, **_placed(table, folder, called), "folder": str(folder)}
    if isinstance(table.get("attack"), Mapping):
        table["attack"] = parse_attack(table["attack"], f"{called}: attack")
    try:
        gate = table.get("gate", {})
        if isinstance(gate, Mapping) and isinstance(gate.get("policy"), str):
            policy = load_policy(Path(gate["policy"]))
            table["gate"] = {**gate, "policy": tomllib.loads(policy.text)}
        scenario = Scenario.model_validate(table)
        anything = DataSource(path="anything")
        scenario.policy(anything, anything if scenario.training_data else None, folder)
    except ValidationError as error:
        raise UsageError(f"{called}: {first_error(error)}") from None
    except PolicyError as error:
        raise UsageError(f"{called}: {error}") from None
    return scenario


def shipped_scenarios() -> dict[str, Path]:
    """The scenarios that come with the program, by name."""
    folder = Path(str(files("promotion_gate.drill"))) / "scenarios"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def starter_policy(*, training_data: bool = True) -> dict[str, Any]:
    """The starter policy's table with those checks alone that can stop a candidate, given what they see."""
    from promotion_gate.starter import STARTER_POLICY

    table = tomllib.loads(STARTER_POLICY)
    table["checks"] = {name: check for name, check in table["checks"].items() if check.get("bounds")}
    if not training_data:
        table["checks"] = {k: check for k, check in table["checks"].items() if k not in NEED_TRAINING_DATA}
    return table


def read_table(path: Path, what: str) -> dict[str, Any]:
    """Parse a TOML file.

    Raises
    ------
    UsageError: it is missing, too large, not UTF-8 or not TOML.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} is larger than {MAX_BYTES:,} bytes", f"is it {what}?")
        return tomllib.loads(path.read_bytes().decode())
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply") from None
    except OSError as error:
        raise UsageError(f"cannot read {what} {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"cannot read {what} {str(path)!r}: {error}") from None


def merged(table: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``table``; an attack of another ``kind``, or other data, replaces what was there."""
    made = dict(table)
    for key, value in over.items():
        below = made.get(key)
        if (
            not isinstance(value, Mapping)
            or not isinstance(below, Mapping)
            or ("kind" in value and value["kind"] != below.get("kind"))
        ):
            made[key] = value
        elif key == "data" and {"renderer", "prepared", "training"} & value.keys():
            kept = {name: below[name] for name in below if name.endswith("_images") or name == "seed"}
            made[key] = merged(kept, value)
        else:
            made[key] = merged(below, value)
    return made


def first_error(error: ValidationError) -> str:
    """The first thing that is wrong, with its place, in one line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    what = {"extra_forbidden": "unknown key", "missing": "missing"}.get(
        first["type"], str(first["msg"]).removeprefix("Value error, ")
    )
    return f"{where}: {what}" if where else what


def to_toml(table: Mapping[str, Any]) -> str:
    """A parsed TOML table as TOML text."""
    return "\n".join(_lines(table, ())) + "\n"


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    if path and (plain or not table):
        yield f"\n[{'.'.join(map(_key, path))}]"
    for key, value in plain.items():
        yield f"{_key(key)} = {_value(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _lines(value, (*path, key))


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return repr(value) if isinstance(value, int | float) else str(value)


def _text(text: str) -> str:
    # JSON's escapes are TOML's, but for the one control character that JSON lets stand.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _placed(table: Mapping[str, Any], folder: Path, called: str) -> dict[str, Any]:
    """A scenario's table with the paths in it made absolute."""
    placed = dict(table)
    data, gate = placed.get("data"), placed.get("gate")
    if isinstance(data, Mapping):
        placed["data"] = {key: _placed_source(value, folder, called) for key, value in data.items()}
    if isinstance(gate, Mapping) and isinstance(gate.get("policy"), str):
        placed["gate"] = {**gate, "policy": str(folder / gate["policy"])}
    return placed


def _placed_source(source: Any, folder: Path, called: str) -> Any:
    path = source.get("path") if isinstance(source, Mapping) else None
    if not isinstance(path, str) or "://" in path:
        return source
    try:
        return {**source, "path": str((folder / path).resolve())}
    except ValueError:
        raise UsageError(f"{called}: the path {path!r} holds a null byte") from None
