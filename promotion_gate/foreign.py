"""Changes of production past the gate: seen, told once in the signed history, and for a person to settle.

What the gate did last says where production should be. Where it is not, somebody moved the alias or the
legacy stage by hand. Two changes that undo each other between two looks cannot be seen: MLflow keeps no
history of an alias. Nor can it be known who it was, or when, only who noticed it and when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from promotion_gate.core.errors import RegistryConflict, SigningError
from promotion_gate.core.keys import TrustedKeys
from promotion_gate.core.production import Production
from promotion_gate.core.types import NO_DIGEST, ForeignMove, ModelRef
from promotion_gate.journal import Actor, Lock, Papers, Recorded, note_down
from promotion_gate.registry.interface import Event, ModelFacts, Registry
from promotion_gate.vouching import DEFAULT_PRODUCTION, done_moves, look, read_record

SETTLE = (
    "'promotion-gate rollback' goes back to the last good version, and 'promotion-gate recover"
    " --accept-foreign' keeps what is there"
)


@dataclass(frozen=True, slots=True)
class Position:
    """Where production is: the version that the alias names, and those in the legacy stage Production.

    ``stage`` is None where the stage need not follow the alias.
    """

    version: int | None
    stage: Sequence[int] | None = None

    def agrees(self, other: Position) -> bool:
        """Whether both tell of one place; a stage that one of them does not know disagrees with nothing."""
        if self.version != other.version:
            return False
        return self.stage is None or other.stage is None or list(self.stage) == list(other.stage)


@dataclass(frozen=True, slots=True)
class Sighting:
    """Where the gate's history left production, and where it was found just now."""

    left: Position
    found: Position

    @property
    def settled(self) -> bool:
        return self.found.agrees(self.left)


def sighted(
    events: Sequence[Event], version: int | None, staged: Sequence[int], production: Production
) -> Sighting | None:
    """Compare production, whose alias names ``version`` and whose stage holds ``staged``, with the history.

    None where the gate has never moved this alias: the model was in production before the gate was, and there
    is nothing to disagree with.
    """
    moves = done_moves(events, production.alias)
    if not moves:
        return None
    left = moves[-1].pointer.to_version
    if not mirrored(events, production):
        return Sighting(Position(left), Position(version))
    return Sighting(Position(left, () if left is None else (left,)), Position(version, tuple(staged)))


def mirrored(events: Sequence[Event], production: Production) -> bool:
    """Whether the legacy stage must be where the alias is: the last move took it along."""
    moves = done_moves(events, production.alias)
    return bool(moves) and moves[-1].pointer.mirror_stage and production.mirror_stage != "never"


def look_for(
    registry: Registry, name: str, version: int | None, events: Sequence[Event], production: Production
) -> Sighting | None:
    """As :func:`sighted`, with the stage read from the registry where it matters."""
    staged = registry.production_stage(name) if mirrored(events, production) else ()
    return sighted(events, version, staged, production)


def last_told(
    registry: Registry, events: Sequence[Event], alias: str, left: Position, trusted: TrustedKeys
) -> Position:
    """Where history says that production is: where the gate left it, or what was noticed since.

    A foreign entry that no trusted key signed tells nothing.
    """
    moves = done_moves(events, alias)
    after = events[events.index(moves[-1]) + 1 :] if moves else events
    for event in reversed(after):
        pointer = event.pointer
        if pointer.action != "foreign" or pointer.alias != alias or event.state == "undone":
            continue
        try:
            told = read_record(registry, event, trusted).foreign
        except SigningError:
            continue
        if told is not None:
            return Position(told.to_version, told.stage)
    return left


def note_foreign_moves(
    registry: Registry, name: str, production: Production = DEFAULT_PRODUCTION, actor: Actor | None = None
) -> list[Recorded]:
    """Look whether production was changed past the gate, and write down what history does not tell yet.

    Each change is told once, as a signed entry ``foreign``; it moves nothing and vouches for nothing. Two
    changes that undo each other between two looks cannot be seen. While somebody moves production, or has
    died doing so, nothing can be said and nothing is: the next look will see it.

    Raises
    ------
    RegistryError: the registry cannot be reached.
    """
    actor = actor or Actor.here()
    facts, events = look(registry, name)
    if _is_moving(events) or not _untold(registry, name, production, actor, facts, events):
        return []
    with Lock(registry, name, actor) as lock:
        try:
            lock.take()
        except RegistryConflict:
            return []
        facts, events = look(registry, name)
        if _is_moving(events):
            return []
        return note_seen(registry, name, production, actor, facts, events)


def note_seen(
    registry: Registry,
    name: str,
    production: Production,
    actor: Actor,
    facts: ModelFacts,
    events: Sequence[Event],
) -> list[Recorded]:
    """Write down what history does not tell yet; to be called under the model's lock."""
    untold = _untold(registry, name, production, actor, facts, events)
    if untold is None:
        return []
    known = untold.to_version or untold.from_version or done_moves(events, untold.alias)[-1].pointer.version
    record = actor.record("foreign", ModelRef(name, known), NO_DIGEST, foreign_line(name, untold))
    papers = Papers(replace(record, foreign=untold))
    return [note_down(registry, papers, production.alias, actor)]


def foreign_line(name: str, moved: ForeignMove) -> str:
    """What happened past the gate, in a line."""
    said = []
    if moved.from_version != moved.to_version:
        to = "taken away" if moved.to_version is None else f"moved to version {moved.to_version}"
        was = "named no version" if moved.from_version is None else f"named version {moved.from_version}"
        said.append(f"alias {moved.alias!r} of {name!r}, which {was}, was {to} past the gate")
    if moved.stage is not None and list(moved.stage) != [moved.to_version]:
        staged = ", ".join(map(str, moved.stage)) or "no version"
        said.append(f"the legacy stage Production of {name!r} holds {staged}")
    return "; ".join(said) or f"alias and stage of {name!r} were put back past the gate"


def require_settled(
    registry: Registry, name: str, version: int | None, production: Production, events: Sequence[Event]
) -> None:
    """Refuse to go on while production, whose alias names ``version``, is not where the gate left it.

    Raises
    ------
    RegistryConflict: it was changed past the gate, and no person has settled it.
    """
    seen = look_for(registry, name, version, events, production)
    if seen is not None and not seen.settled:
        raise RegistryConflict(
            foreign_line(name, difference(production.alias, seen.left, seen.found)), SETTLE
        )


def _untold(
    registry: Registry,
    name: str,
    production: Production,
    actor: Actor,
    facts: ModelFacts,
    events: Sequence[Event],
) -> ForeignMove | None:
    seen = look_for(registry, name, facts.aliases.get(production.alias), events, production)
    if seen is None:
        return None
    told = last_told(registry, events, production.alias, seen.left, actor.keys.trusted)
    return None if seen.found.agrees(told) else difference(production.alias, told, seen.found)


def difference(alias: str, told: Position, found: Position) -> ForeignMove:
    """The change from where production was known to be to where it was found."""
    return ForeignMove(alias, told.version, found.version, found.stage)


def _is_moving(events: Sequence[Event]) -> bool:
    return any(event.state == "begun" and event.pointer.moves for event in events)
