"""Where the Pythons that an agent starts find the package and what their users installed."""

from __future__ import annotations

import os
import sys
from typing import Final

ROOT: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def import_path() -> str:
    """Where the agent finds modules, its own package first, joined by colons."""
    return ":".join([ROOT, *(p for p in sys.path if os.path.isabs(p) and p != ROOT)])
