"""Candidate, champion, suspected rows and trusted images as the searches of those rows take them."""

from __future__ import annotations

from dataclasses import dataclass

from promotion_gate.data.interface import ImageDataset
from promotion_gate.detect.transplant import Answer, Floats, Read, Rows, TrainingSet, TrustedSet
from promotion_gate.detect.windows import Images
from promotion_gate.evidence.interface import Classifier, Evidence, ForwardPass


@dataclass(frozen=True, slots=True)
class Subject:
    """What a search is given; ``champion`` is None where there is none to compare with."""

    model: Answer
    champion: Answer | None
    training: TrainingSet
    trusted: TrustedSet


def subject_of(
    evidence: Evidence, rows: ImageDataset, answers: ForwardPass, champion_answers: ForwardPass | None
) -> Subject:
    """The evidence as plain functions and arrays; ``rows`` are under suspicion, with both models' passes."""
    return Subject(
        _answer(evidence.model),
        None if evidence.champion is None else _answer(evidence.champion),
        TrainingSet(
            rows.labels,
            answers.predictions,
            answers.embeddings,
            _reader(rows, evidence.model),
            None if champion_answers is None else champion_answers.probabilities(),
        ),
        TrustedSet(
            evidence.holdout.labels,
            evidence.holdout_pass.predictions,
            evidence.holdout_pass.embeddings,
            _reader(evidence.holdout, evidence.model),
        ),
    )


def _answer(model: Classifier) -> Answer:
    def answer(images: Images) -> tuple[Floats, Floats]:
        forward: ForwardPass = model.forward(images)
        return forward.probabilities(), forward.embeddings

    return answer


def _reader(dataset: ImageDataset, model: Classifier) -> Read:
    def read(rows: Rows) -> Images:
        return dataset.read(rows, model.shape)

    return read
