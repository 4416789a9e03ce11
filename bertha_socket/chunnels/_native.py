"""What the native carrier can run: it says so itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from functools import lru_cache
from typing import Final

#: The program; built from native/carrier.
PATH: Final = os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lib", "bertha-carrier"
)
_SECONDS: Final = 5.0


@lru_cache(maxsize=4)
def _listed(path: str, changed_ns: int) -> frozenset[str]:
    """Raises OSError, SubprocessError."""
    found = subprocess.run(
        [path, "--chunnels"], capture_output=True, text=True, timeout=_SECONDS, check=True, env={}, cwd="/"
    )
    return frozenset(found.stdout.split())


def native_probe(name: str) -> Callable[[], str | None]:
    """A probe: whether the native carrier is built and has that chunnel type."""

    def probe() -> str | None:
        try:
            types = _listed(PATH, os.stat(PATH).st_mtime_ns)
        except (OSError, subprocess.SubprocessError):
            return "the native carrier is not built"
        return None if name in types else "the native carrier does not have it"

    return probe
