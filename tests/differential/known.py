"""Sequences that are known to differ from plain TCP, and in what: docs/users/limits.md tells users of them.

Found by `python -m tests.differential.lockstep SEED`.  A seed goes from here when its difference is gone.
"""

from __future__ import annotations

from typing import Final

_RESET_AFTER_FIN = "after a FIN, when a later RST is seen by an epoll set"

KNOWN: Final[dict[int, str]] = {
    37: _RESET_AFTER_FIN,
    56: _RESET_AFTER_FIN,
    176: "MSG_PEEK sees one carrier's bytes only, where the connection is just moving to the ring",
}
