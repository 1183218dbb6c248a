"""The lock of a model: a registered model whose name says which, since creating one is atomic in MLflow.

It carries who holds it and until when. A holder that died loses it when the lease is over: the next one
deletes it. Where the server lets nobody but its owner delete it (basic-auth), the next one takes the lock
that comes after it in number, and everybody looks at both neighbours: whoever finds another live one beside
their own gives theirs back. Each creates first and looks then, so of two at once at most one holds.
"""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from promotion_gate.core.errors import NotInRegistry, RegistryConflict, RegistryError
from promotion_gate.registry.answers import moment
from promotion_gate.registry.connection import Connection
from promotion_gate.registry.interface import LockHolder
from promotion_gate.registry.naming import LOCK_TOKEN, LOCK_UNTIL, LOCK_WHO, lock_name
from promotion_gate.registry.trouble import Denied, WrongAnswer

SETTLE_SECONDS = 1.0
UNREADABLE_LEASE = timedelta(seconds=120)
LONGEST_LEASE = timedelta(minutes=15)
"""No lock of the gate is ever held further ahead; one that says so is somebody's obstacle."""

_ATTEMPTS = 10
_PAGE = 100


class MlflowLocks:
    """The locks of one server's models; the methods are those of the registry."""

    def __init__(self, server: Connection) -> None:
        self._server = server
        self._names: dict[str, str] = {}

    def acquire(self, name: str, holder: LockHolder) -> None:
        broke_a_lease = False
        number = 0
        for _ in range(_ATTEMPTS):
            if self._create(name, number, holder):
                break
            others = self._all(name)
            taken = others.get(lock_name(name, number))
            if taken is not None and taken.token == holder.token:
                break  # a lost attempt made it
            _refuse_if_live(name, self._server.host, others, holder)
            if taken is None:
                continue
            try:
                self._delete(name, lock_name(name, number), taken.token)
                broke_a_lease = True
            except Denied:
                number += 1
        else:
            raise RegistryConflict(
                f"others keep changing the production version of {name!r} at {self._server.host}",
                f"try again; if nobody does, delete the registered models {lock_name(name)}*",
            )
        lock = lock_name(name, number)
        try:
            if broke_a_lease:
                # Of several who broke the same lease, each may have deleted the lock of another.
                time.sleep(SETTLE_SECONDS)
            self._require_alone(name, lock, holder)
        except RegistryError:
            with contextlib.suppress(RegistryError):
                self._delete_if_held(name, lock, holder.token)
            raise
        self._names[holder.token] = lock

    def renew(self, name: str, holder: LockHolder) -> None:
        lock = self._names.get(holder.token, lock_name(name))
        found = self._all(name).get(lock)
        if found is None or found.token != holder.token:
            raise RegistryConflict(f"somebody else took the lock of {name!r} at {self._server.host}")
        self._server.ask(
            f"the lock of {name!r}",
            lambda client: client.set_registered_model_tag(lock, LOCK_UNTIL, holder.until.isoformat()),
        )

    def holder(self, name: str) -> LockHolder | None:
        """Whoever holds it longest, or held it last and did not give it back."""
        return max(self._all(name).values(), key=lambda other: other.until, default=None)

    def release(self, name: str, holder: LockHolder) -> None:
        lock = self._names.pop(holder.token, lock_name(name))
        if datetime.now(UTC) >= holder.until:
            self._delete_if_held(name, lock, holder.token)
        else:
            self._delete(name, lock, holder.token)

    def _require_alone(self, name: str, lock: str, holder: LockHolder) -> None:
        found = self._all(name)
        if lock not in found or found[lock].token != holder.token:
            what = f"somebody else took the lock of {name!r} at {self._server.host}"
            raise RegistryConflict(what, "try again")
        _refuse_if_live(name, self._server.host, found, holder)

    def _delete_if_held(self, name: str, lock: str, token: str) -> None:
        found = self._all(name).get(lock)
        if found is not None and found.token == token:
            self._delete(name, lock, token)

    def _create(self, name: str, number: int, holder: LockHolder) -> bool:
        """Again: the second of two fails, and the lock that the first made is known by its token."""
        tags = {LOCK_TOKEN: holder.token, LOCK_WHO: holder.who, LOCK_UNTIL: holder.until.isoformat()}
        about = f"Held while promotion-gate is at work on {name}. Deleted afterwards."
        lock = lock_name(name, number)

        def create(client: Any) -> bool:
            try:
                made = client.create_registered_model(lock, tags, about)
            except Exception as error:
                # The second: it was there, and gone again when the server looked whose it is.
                if getattr(error, "error_code", "") in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                    return False
                raise
            if made.name != lock:
                raise WrongAnswer("it speaks of another lock")
            return True

        return self._server.ask(f"the lock of {name!r}", create)

    def _delete(self, name: str, lock: str, token: str) -> None:
        """Again only while it is the same holder's: a lost attempt may have freed it for somebody else."""

        def already(client: Any) -> tuple[None] | None:
            found = _search(client, name).get(lock)
            return None if found is not None and found.token == token else (None,)

        with contextlib.suppress(NotInRegistry):
            self._server.ask(
                f"the lock of {name!r}",
                lambda client: client.delete_registered_model(lock),
                before_repeat=already,
            )

    def _all(self, name: str) -> dict[str, LockHolder]:
        """Every lock of the model, live or not, by the name of its registered model."""
        return self._server.ask(f"the lock of {name!r}", lambda client: _search(client, name))


def _search(client: Any, name: str) -> dict[str, LockHolder]:
    prefix = lock_name(name)
    page = client.search_registered_models(f"name LIKE '{prefix}%'", _PAGE)
    found = {model.name: _read(model) for model in page}
    if any(not lock.startswith(prefix) for lock in found):
        raise WrongAnswer("it speaks of another lock")
    return found


def _read(model: Any) -> LockHolder:
    created = moment(model.creation_timestamp)
    until = created + UNREADABLE_LEASE
    with contextlib.suppress(KeyError, ValueError):
        stated = datetime.fromisoformat(model.tags[LOCK_UNTIL])
        if stated.tzinfo and stated <= datetime.now(UTC) + LONGEST_LEASE:
            until = stated
    return LockHolder(model.tags.get(LOCK_TOKEN, ""), model.tags.get(LOCK_WHO, "somebody"), until)


def _refuse_if_live(name: str, host: str, others: dict[str, LockHolder], holder: LockHolder) -> None:
    now = datetime.now(UTC)
    for other in others.values():
        if other.token != holder.token and other.until > now:
            seconds = (other.until - now).total_seconds()
            raise RegistryConflict(
                f"{other.who} is changing the production version of {name!r} at {host}",
                f"try again; the lock falls by itself in {seconds:.0f} s",
            )
