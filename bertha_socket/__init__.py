"""Ordinary sockets whose transport is negotiated beneath them when a connection is made.

`import bertha_socket as socket`: the whole of stdlib's `socket`, with a `socket` class whose connections are
negotiated.  `bertha_socket.monkey`: the same for everything in the process.  `bertha_socket.new`: the paper's
API.  Loaded when they are asked for, because commands and agent start with this import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bertha_socket._version import __version__ as __version__

if TYPE_CHECKING:
    from socket import *  # noqa: F403

    from bertha_socket._endpoint import new as new
    from bertha_socket.chunnels import register_chunnel as register_chunnel
    from bertha_socket.chunnels.serialize import register_codec as register_codec
    from bertha_socket.dag import parse as parse
    from bertha_socket.dag import wrap as wrap

# name -> (module, name there)
_OWN = {
    "new": ("bertha_socket._endpoint", "new"),
    "wrap": ("bertha_socket.dag", "wrap"),
    "parse": ("bertha_socket.dag", "parse"),
    "register_chunnel": ("bertha_socket.chunnels", "register_chunnel"),
    "register_codec": ("bertha_socket.chunnels.serialize", "register_codec"),
}


def __getattr__(name: str) -> Any:
    import importlib
    import os

    if name in _OWN:
        module, there = _OWN[name]
        return getattr(importlib.import_module(module), there)
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = os.path.join(os.path.dirname(__file__), name)
    if os.path.exists(f"{place}.py") or os.path.exists(f"{place}/__init__.py"):
        # A module of ours: `from bertha_socket import NAME` imports it when it hears this.
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: import {__name__}.{name} first")
    from bertha_socket import _drop_in

    if name == "__all__":
        return _drop_in.names()
    try:
        return _drop_in.NAMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    from bertha_socket import _drop_in

    return sorted({*globals(), *_OWN, *_drop_in.names()})
