"""The posture for the terminal and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from promotion_gate.provenance.posture.assess import Posture, Share

SCHEMA = "promotion-gate-posture/1"
_SHOWN = 5


def posture_lines(posture: Posture) -> Iterator[str]:
    """Each answer with its evidence and what to do."""
    for answer in posture.answers:
        yield f"{answer.question} {str(answer.answer).upper()}: {answer.because}"
        for place in answer.evidence[:_SHOWN]:
            yield f"- {place.path}:{place.line}: {place.what}"
        if len(answer.evidence) > _SHOWN:
            yield f"- and {len(answer.evidence) - _SHOWN} more"
        if answer.advice:
            yield f"to do: {answer.advice}"
    yield f"data sets in use with a verified checksum: {share_text(posture.coverage)}"
    yield f"training pipelines with a validation step: {share_text(posture.validation)}"


def share_text(share: Share) -> str:
    """``3 of 4 (75 %)``."""
    if share.share is None:
        return "not to be told"
    return f"{share.count} of {share.of} ({100 * share.share:.0f} %)"


def posture_table(posture: Posture) -> dict[str, Any]:
    """The posture as JSON's types."""
    return {
        "schema": SCHEMA,
        "answers": [
            {
                "key": answer.key,
                "question": answer.question,
                "answer": str(answer.answer),
                "because": answer.because,
                "advice": answer.advice,
                "evidence": [
                    {"path": e.path, "line": e.line, "what": e.what, "good": e.good} for e in answer.evidence
                ],
            }
            for answer in posture.answers
        ],
        "checksum_coverage": _share(posture.coverage),
        "validated_pipelines": _share(posture.validation),
        "pipelines": list(posture.pipelines),
        "unreadable": list(posture.unreadable),
    }


def posture_json(posture: Posture) -> str:
    """The posture as the text of a JSON file."""
    return json.dumps(posture_table(posture), indent=1, ensure_ascii=True) + "\n"


def _share(share: Share) -> dict[str, Any]:
    return {"count": share.count, "of": share.of, "share": share.share, "text": share_text(share)}
