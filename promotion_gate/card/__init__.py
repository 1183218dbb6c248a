"""The model card: findings and verdict as one self-contained HTML file."""
