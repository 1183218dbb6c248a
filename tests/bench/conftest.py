"""Lets tests import what the benchmarks import from their own folder."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
