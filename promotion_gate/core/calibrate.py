"""Bounds for a wanted false-alarm rate, from the findings of models that are known to be clean.

A bound on a metric raises a false alarm when a clean model falls outside it. Where clean models differ only
by chance (retrains of one recipe), their values are exchangeable, and the k-th largest of ``n`` is exceeded
by the next clean model with a chance of at most ``k / (n + 1)``, whatever the distribution. With a confidence
instead, the bound is a tolerance limit: S. S. Wilks, "Determination of sample sizes for setting tolerance
limits", Annals of Mathematical Statistics 12 (1941).

The wanted rate is split evenly over the bounds (C. E. Bonferroni, 1936): any of them can raise the alarm.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from typing import Literal

from promotion_gate.core.decide import OWN_RULES
from promotion_gate.core.errors import UsageError
from promotion_gate.core.policy import Policy
from promotion_gate.core.types import Finding, Rule, Status

DIGITS = 4
"""Significant digits of a bound; it is rounded to the side that lets more models pass."""

Side = Literal["min", "max"]
Change = Literal["kept", "tightened", "loosened"]


@dataclass(frozen=True, slots=True)
class CleanModel:
    """What the checks measured on one model that is known to be clean."""

    name: str
    findings: Sequence[Finding]


@dataclass(frozen=True, slots=True)
class CalibratedBound:
    """One side of one bound: what the policy had, what the clean models make of it, and why.

    ``values`` are the clean models' finite measurements in rising order, ``breached`` how many of them the
    policy's own bound would have refused or held, and ``rate`` the expected share of clean models outside
    ``bound`` (NaN where the shipped bound was kept: it was not derived from them).
    """

    check: str
    metric: str
    side: Side
    shipped: float
    bound: float
    values: Sequence[float]
    breached: int
    rate: float
    change: Change
    reason: str

    @property
    def name(self) -> str:
        return f"{self.check}.{self.metric} {self.side}"


@dataclass(frozen=True, slots=True)
class Calibration:
    """Every bound of a policy, held against clean models.

    ``share`` is the part of the wanted ``rate`` that each bound gets, and ``needed`` how many clean models
    a bound needs for it.
    """

    models: Sequence[str]
    rate: float
    confidence: float | None
    share: float
    needed: int
    bounds: Sequence[CalibratedBound]


def models_needed(rate: float, confidence: float | None = None) -> int:
    """The fewest clean models whose extreme value is a bound for this false-alarm rate.

    The expected rate of the extreme of ``n`` is ``1 / (n + 1)``; it stays below ``rate`` with ``confidence``
    where ``(1 - rate) ** n <= 1 - confidence``.
    """
    if confidence is None:
        return max(1, math.ceil(1 / rate - 1 - 1e-9))
    return max(1, math.ceil(math.log(1 - confidence) / math.log1p(-rate) - 1e-9))


def allowed_rank(count: int, rate: float, confidence: float | None = None) -> int:
    """Which of ``count`` values, from the extreme inward, may be the bound: 1 for the extreme, 0 for none."""
    if confidence is None:
        return min(count, math.floor(rate * (count + 1) + 1e-9))
    rank, below = 0, 0.0  # ``below`` is the chance that at most ``rank`` of the models lie beyond the rate
    while rank < count:
        below += _binomial(rank, count, rate)
        if 1 - below < confidence - 1e-12:
            break
        rank += 1
    return rank


def breach_rate_at_most(breached: int, count: int, confidence: float = 0.95) -> float:
    """Upper end of the one-sided exact interval of a share.

    C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits", Biometrika 26 (1934).
    """
    if breached >= count:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        reached = math.fsum(_binomial(k, count, middle) for k in range(breached + 1))
        low, high = (middle, high) if reached > 1 - confidence else (low, middle)
    return high


def calibrate(
    policy: Policy,
    models: Sequence[CleanModel],
    rate: float,
    confidence: float | None = None,
    only: Collection[str] = (),
) -> Calibration:
    """Derive each bound of the policy from clean models, or keep it and say why.

    Parameters
    ----------
    policy
        Whose bounds are held against the models.
    models
        Findings of clean models, each of another training run.
    rate
        Wanted share of clean models that any bound refuses or holds, above 0 and at most one half.
    confidence
        None for that rate on average, else how sure each bound's share of it must be.
    only
        Bounds to derive, as ``check.metric``; the others stay, and take no share of the rate.

    Raises
    ------
    UsageError: no model, a rate out of range, an unknown bound, or a model that breaks a bound which allows
    none.
    """
    if not models:
        raise UsageError("there is no clean model to calibrate with")
    if not 0 < rate <= 0.5:
        raise UsageError(
            f"a false-alarm rate of {rate:g} cannot be asked for", "give one above 0, at most 0.5"
        )
    if confidence is not None and not 0.5 <= confidence < 1:
        raise UsageError(f"a confidence of {confidence:g} cannot be asked for", "give one of 0.5 to below 1")
    sides = [side for rule in policy.rules() for side in _sides(rule)]
    known = {f"{rule.check}.{rule.metric}" for rule, _, _ in sides}
    if unknown := sorted(set(only) - known):
        raise UsageError(f"the policy has no bound {unknown[0]}", f"it has {', '.join(sorted(known))}")
    _refuse_unclean(policy, models)
    free = [s for s in sides if not _is_zero_tolerance(s[0], s[1]) and _is_chosen(s[0], only)]
    share = rate / max(1, len(free))
    needed = models_needed(share, confidence)
    bounds = [_bound(rule, side, limit, models, share, confidence, only) for rule, side, limit in sides]
    return Calibration([m.name for m in models], rate, confidence, share, needed, bounds)


def _sides(rule: Rule) -> list[tuple[Rule, Side, float]]:
    found: list[tuple[Rule, Side, float]] = []
    if rule.minimum > -math.inf:
        found.append((rule, "min", rule.minimum))
    if rule.maximum < math.inf:
        found.append((rule, "max", rule.maximum))
    return found


def _is_chosen(rule: Rule, only: Collection[str]) -> bool:
    return not only or f"{rule.check}.{rule.metric}" in only


def _is_zero_tolerance(rule: Rule, side: Side) -> bool:
    """A rejecting bound that allows none of something: no rate of false alarms can argue for one."""
    return rule.otherwise == "reject" and side == "max" and rule.maximum <= 0


def _refuse_unclean(policy: Policy, models: Sequence[CleanModel]) -> None:
    for rule in (*OWN_RULES, *policy.rules()):
        if not _is_zero_tolerance(rule, "max"):
            continue
        for model in models:
            value = _value(model, rule)
            if value is not None and value > rule.maximum and value > 0:
                raise UsageError(
                    f"{model.name} cannot be called clean: {rule.check}: {rule.metric} is {value:g},"
                    f" {rule.bound} allowed",
                    "leave it out, or find out why",
                )


def _value(model: CleanModel, rule: Rule) -> float | None:
    found = [f for f in model.findings if f.check == rule.check]
    if len(found) != 1 or found[0].status is not Status.MEASURED:
        return None
    value = found[0].metrics.get(rule.metric)
    return value if value is not None and math.isfinite(value) else None


def _bound(
    rule: Rule,
    side: Side,
    shipped: float,
    models: Sequence[CleanModel],
    share: float,
    confidence: float | None,
    only: Collection[str],
) -> CalibratedBound:
    measured = (_value(model, rule) for model in models)
    values = sorted(value for value in measured if value is not None)
    count = len(values)
    breached = sum(value > shipped if side == "max" else value < shipped for value in values)

    def kept(reason: str) -> CalibratedBound:
        return CalibratedBound(
            rule.check, rule.metric, side, shipped, shipped, values, breached, math.nan, "kept", reason
        )

    if _is_zero_tolerance(rule, side):
        return kept("allows none, and is never loosened")
    if not _is_chosen(rule, only):
        return kept("not asked for")
    if not values:
        return kept("no clean model was measured")
    rank = allowed_rank(count, share, confidence)
    if not rank:
        return kept(
            f"needs {models_needed(share, confidence)} clean models, {count} measured; {breached} of them"
            f" break it, so up to {breach_rate_at_most(breached, count):.0%} of clean models may (95 %"
            " confidence)"
        )
    bound = _rounded(values[-rank] if side == "max" else values[rank - 1], side)
    looser = bound > shipped if side == "max" else bound < shipped
    change: Change = "kept" if bound == shipped else "loosened" if looser else "tightened"
    outermost = {"max": "largest", "min": "smallest"}[side]
    which = f"the {outermost}" if rank == 1 else f"number {rank} from the {outermost}"
    return CalibratedBound(
        rule.check,
        rule.metric,
        side,
        shipped,
        bound,
        values,
        breached,
        rank / (count + 1),
        change,
        f"{which} of {count} clean models",
    )


def _rounded(value: float, side: Side) -> float:
    rounding = ROUND_CEILING if side == "max" else ROUND_FLOOR
    return float(Context(prec=DIGITS, rounding=rounding).create_decimal(repr(value)))


def _binomial(hits: int, count: int, rate: float) -> float:
    if rate <= 0 or rate >= 1:
        return float(hits == (0 if rate <= 0 else count))
    log_ways = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
    return math.exp(log_ways + hits * math.log(rate) + (count - hits) * math.log1p(-rate))
