from types import SimpleNamespace

import pytest

from promotion_gate.core.types import Judgement, Outcome, Rule, Ruling, Verdict
from promotion_gate.drill.models import DrillFailed
from promotion_gate.drill.poison import parse_attack
from promotion_gate.drill.run import _require_judged, true_pairs

FLIPS = Rule("label-concentration", "flip_p", minimum=1e-5, otherwise="hold")
UNREADABLE = Judgement("inputs", None, Ruling.INCONCLUSIVE, None, "a class has no image", blocking=True)
BROKEN = Judgement(
    "label-concentration", FLIPS, Ruling.INCONCLUSIVE, 1e-9, "rows look flipped", blocking=True
)


def gated(outcome, *judgements):
    return SimpleNamespace(report=SimpleNamespace(verdict=Verdict(outcome, judgements, "d" * 64)))


def test_a_model_that_is_held_unseen_is_not_caught():
    with pytest.raises(DrillFailed, match="could not examine the model: inputs: a class has no image"):
        _require_judged(gated(Outcome.HOLD, UNREADABLE))
    _require_judged(gated(Outcome.HOLD, UNREADABLE, BROKEN))
    _require_judged(gated(Outcome.PROMOTE))


def test_the_truth_needs_no_word_of_the_gate():
    attack = parse_attack({"kind": "patch", "rate": 0.1, "source": "stop", "target": "yield"})
    assert true_pairs(attack, ("stop", "yield", "go")) == ({("stop", "yield")}, True)
