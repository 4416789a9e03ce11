"""What a program has registered itself (`register_chunnel`), for the agent: where each class is.

The chunnels of connections that the shim carries run beside the agent, in another process, which imports the
class anew.  So that goes for classes that can be found by their module: not for one of the main script, which
would run a second time, or of a function.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["forget", "note", "source_of", "sources"]

log: Final = logging.getLogger(__name__)

_lock = threading.Lock()
_sources: dict[str, str] = {}


def sources() -> Mapping[str, str]:
    """Name to "module:Class" or "/path/to/file.py:Class"."""
    with _lock:
        return dict(_sources)


def note(name: str, cls: type) -> None:
    """A class has been registered by that name."""
    source = source_of(cls)
    with _lock:
        if source is None:
            _sources.pop(name, None)
        else:
            _sources[name] = source
    if source is None:
        log.info("chunnel %s: %s cannot be imported elsewhere, so the agent is not told", name, cls)
    _tell()


def forget(name: str) -> None:
    """It is registered no more."""
    with _lock:
        known = _sources.pop(name, None)
    if known is not None:
        _tell()


def _tell() -> None:
    door = _door()
    if door is not None:
        door.tell_registered()


def source_of(cls: type) -> str | None:
    """Where another process finds that class; None: nowhere."""
    module = sys.modules.get(cls.__module__)
    if module is None or cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        return None
    file = getattr(module, "__file__", None) or ""
    if "." not in cls.__module__ and file.endswith(".py") and os.path.basename(file) != "__init__.py":
        # Of a program's own folder, which is on its own path alone.
        return f"{os.path.abspath(file)}:{cls.__qualname__}"
    return f"{cls.__module__}:{cls.__qualname__}"


def _door() -> Any:
    """Where the shim is in this process."""
    if "libbertha_shim" in os.environ.get("LD_PRELOAD", ""):
        from bertha_socket import _door as _imported  # noqa: F401
    return sys.modules.get("bertha_socket._door")
