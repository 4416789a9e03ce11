"""Tests of DAGs: their text, Python's operators, and expressions in them."""

from __future__ import annotations
