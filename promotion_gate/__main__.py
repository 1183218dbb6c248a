"""``python -m promotion_gate`` is ``promotion-gate``."""

from promotion_gate.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
