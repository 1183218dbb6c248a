"""Which checks there are: every entry point in the group ``promotion_gate.checks``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points

from pydantic import ValidationError

from promotion_gate.checks.interface import Check
from promotion_gate.core.errors import PolicyError
from promotion_gate.core.policy import Policy, known_names, options_error

GROUP = "promotion_gate.checks"


def installed_checks() -> Mapping[str, type[Check]]:
    """Every installed check class by its name, sorted.

    Raises
    ------
    PolicyError: two packages offer a check of one name, or one cannot be imported.
    """
    found: dict[str, type[Check]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        if point.name in found:
            raise PolicyError(f"two checks are called {point.name!r}", "uninstall one of the packages")
        try:
            found[point.name] = point.load()
        except (Exception, SystemExit) as error:  # sys.exit(0) on import must not end the gate with 0
            raise PolicyError(
                f"the check {point.name!r} ({point.value}) cannot be loaded: {error}"
            ) from error
    return found


def chosen_checks(policy: Policy) -> list[Check]:
    """The checks that the policy names, with their options, each after those that it reads.

    Raises
    ------
    PolicyError: an unknown check, metric or option, or checks that wait for each other.
    """
    installed = installed_checks()
    known_names(policy, {name: check.metrics for name, check in installed.items()})
    chosen: dict[str, Check] = {}
    for name, asked in policy.checks.items():
        kind = installed[name]
        try:
            chosen[name] = kind(kind.options_type.model_validate(asked.options))
        except ValidationError as error:
            raise options_error(name, error) from None
    return _in_order(chosen)


def _in_order(chosen: Mapping[str, Check]) -> list[Check]:
    ordered: dict[str, Check] = {}
    while len(ordered) < len(chosen):
        ready = {
            name: check
            for name, check in chosen.items()
            if name not in ordered and all(a in ordered or a not in chosen for a in check.after)
        }
        if not ready:
            stuck = ", ".join(name for name in chosen if name not in ordered)
            raise PolicyError(f"these checks wait for each other: {stuck}")
        ordered |= ready
    return list(ordered.values())
