"""The version, once: pyproject.toml, the preload library and the agent's greeting all read it here."""

from __future__ import annotations

__version__ = "0.1.0"
