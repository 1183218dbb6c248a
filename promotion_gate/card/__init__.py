"""The model card: findings and verdict as one self-contained HTML file, and its twins for machines."""

from promotion_gate.card.html import render_card
from promotion_gate.card.junit import report_junit
from promotion_gate.card.summary import report_markdown
from promotion_gate.card.twin import report_json

__all__ = ["render_card", "report_json", "report_junit", "report_markdown"]
