"""An operator's own order of preference: a Python function that the agent loads when it starts.

$BERTHA_CHOICE is "module:function" or "/path/to/file.py:function" (see negotiation.choose.Policy).  It is
called for each chunnel of each new plan, in the agent's loop: it must be quick.
A policy file's [agent] choose is the same (bertha_socket._settings).
A file that is somebody else's is not run.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from bertha_socket._settings import why_not_ours
from bertha_socket.negotiation.choose import Policy


class OperatorError(OSError):
    """The function cannot be loaded; one line with the place and the remedy."""


def from_environment(environ: Mapping[str, str] | None = None) -> Policy | None:
    """The function that $BERTHA_CHOICE names; None: the default policy is in force.  Raises OperatorError."""
    source = (os.environ if environ is None else environ).get("BERTHA_CHOICE", "")
    return load(source) if source else None


def load(source: str) -> Policy:
    """The function that `source` names.  Raises OperatorError."""
    place, _, name = source.rpartition(":")
    try:
        if not place or not name:
            raise ValueError("not module:function")
        found: Any = getattr(_module(place), name)
        if not callable(found):
            raise TypeError(f"{name} is no function")
    except Exception as error:  # the operator's code
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        remedy = 'write "module:function" or "/path/file.py:function"'
        raise OperatorError(errno.EINVAL, f"choose (BERTHA_CHOICE): {source}: {problem}; {remedy}") from None
    policy: Policy = found
    return policy


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        found = importlib.util.find_spec(place)
        if found is not None and found.origin is not None and os.path.isfile(found.origin):
            _trusted(found.origin)
        return importlib.import_module(place)
    _trusted(place)
    spec = importlib.util.spec_from_file_location("bertha_operator", place)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _trusted(path: str) -> None:
    why = why_not_ours(path)
    if why is not None:
        raise PermissionError(f"{path}: {why}")
