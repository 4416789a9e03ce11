"""The Python doors: the socket module, monkey.patch_all(), new()."""

from __future__ import annotations
