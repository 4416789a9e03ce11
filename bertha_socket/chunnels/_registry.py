"""The chunnel types that are known here: our own, those of installed packages, those that were registered.

Installed packages bring chunnels by entry points of the group `bertha_socket.chunnels`, each of which names a
ChunnelType, a Pipe class, or a function that returns one of them.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final

from bertha_socket.chunnels import _registered
from bertha_socket.chunnels._author import chunnel_type_of
from bertha_socket.chunnels._types import ChunnelType, UnknownChunnel

if TYPE_CHECKING:
    from bertha_socket.dag import Chunnel

log = logging.getLogger(__name__)

GROUP: Final = "bertha_socket.chunnels"
#: Our own types, each in the module of its name.
BUILTIN: Final = (
    "branch",
    "compress",
    "count",
    "encrypt",
    "frame",
    "http2",
    "limit",
    "local_or_remote",
    "mirror",
    "reliable",
    "serialize",
    "shard",
    "tcp",
    "udp",
)

_lock = threading.RLock()
_types: dict[str, ChunnelType] = {}
_looked: set[str] = set()


def _load_builtin(name: str) -> ChunnelType | None:
    try:
        module = importlib.import_module(f"bertha_socket.chunnels.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("bertha_socket.chunnels."):
            log.warning("chunnel type %s is not available: %s", name, error)
        return None
    found: ChunnelType = module.TYPE
    return found


def _entry_point_types() -> Iterator[ChunnelType]:
    for point in entry_points(group=GROUP):
        try:
            yield chunnel_type_of(point.load(), point.name)
        except Exception as error:  # somebody else's code must not keep the others away
            log.warning("entry point %s (%s): %s", point.name, point.value, error)


def _look(what: str) -> None:
    with _lock:
        if what in _looked:
            return
        _looked.add(what)
        if what == "entry points":
            for found in _entry_point_types():
                _types.setdefault(found.name, found)
        else:
            builtin = _load_builtin(what)
            if builtin is not None:
                _types.setdefault(what, builtin)


def type_of(chunnel: Chunnel) -> ChunnelType:
    """The type of a chunnel.  Raises UnknownChunnel, with its column if the DAG comes from a text."""
    return get(chunnel.type, chunnel.column)


def get(name: str, column: int | None = None) -> ChunnelType:
    """The chunnel type of that name.  Raises UnknownChunnel; `column`: where a text names it."""
    if name in BUILTIN:
        _look(name)
    if name not in _types:
        _look("entry points")
    with _lock:
        if name in _types:
            return _types[name]
    raise UnknownChunnel(
        name, "install the package that brings it, or give it to the policy file as a [[chunnel]]", column
    )


def all_types() -> tuple[ChunnelType, ...]:
    """All chunnel types that are known here, by name."""
    for name in BUILTIN:
        _look(name)
    _look("entry points")
    with _lock:
        return tuple(_types[n] for n in sorted(_types))


def register(chunnel_type: ChunnelType) -> ChunnelType:
    """Makes a type known to this process; one of the same name is replaced.  Returns it."""
    if chunnel_type.name in BUILTIN:
        _look(chunnel_type.name)
    with _lock:
        _types[chunnel_type.name] = chunnel_type
    return chunnel_type


def unregister(name: str) -> None:
    """Forgets a type that was registered; our own come back."""
    _registered.forget(name)
    with _lock:
        _types.pop(name, None)
        _looked.discard(name)


def known() -> Mapping[str, ChunnelType]:
    """What is loaded at present, by name."""
    with _lock:
        return dict(_types)
