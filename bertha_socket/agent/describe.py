"""What a child tells its agent about the classes of authors (authors.py).

Apart from the agent's modules: an interpreter that is started for it has this to import, while a connection
waits.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Final

import msgpack

from bertha_socket.agent import memory
from bertha_socket.chunnels import ChunnelArgumentError, ChunnelType, load_chunnel
from bertha_socket.chunnels._types import REQUIRED

_SCALARS: Final = (bool, int, float, str, bytes, type(None))


def become(user: str) -> None:
    """Has no rights but those of `user`, written UID:GID:GROUP,GROUP...  Raises OSError, ValueError."""
    uid, gid, groups = user.split(":")
    os.setgroups([int(g) for g in groups.split(",") if g])
    os.setresgid(int(gid), int(gid), int(gid))
    os.setresuid(int(uid), int(uid), int(uid))
    memory.die_with_parent()  # becoming somebody else has undone it (prctl(2))


def describe(sources: Iterable[tuple[str, str]]) -> None:
    """Writes what the classes say about themselves, by name, to descriptor 0."""
    found: dict[str, dict[str, Any]] = {}
    for name, source in sources:
        try:
            kind = load_chunnel(source, name)
            if kind.name != name:
                raise ValueError(f"its class calls itself {kind.name!r}; write that as its name")
            found[name] = _described(kind)
        except ChunnelArgumentError as error:
            said = error.strerror or ""
            found[name] = {"error": said if said.startswith(source) else f"{source}: {said}"}
        except BaseException as error:  # also one that calls sys.exit()
            found[name] = {
                "error": f"{source}: {error}" if str(error) else f"{source}: {type(error).__name__}"
            }
        data = msgpack.packb(found)
        os.pwrite(0, data, 0)  # one that ends the process later leaves those before


def _described(kind: ChunnelType) -> dict[str, Any]:
    return {
        "summary": kind.summary,
        "endpoints": kind.endpoints,
        "layer": kind.layer,
        "upper": kind.upper.value,
        "lower": kind.lower.value,
        "dictated": bool(getattr(kind, "dictated", True)),
        "parameters": [
            {
                "name": p.name,
                "kind": p.kind,
                "agree": p.agree,
                "required": p.default is REQUIRED,
                "default": p.default if isinstance(p.default, _SCALARS) else None,
            }
            for p in kind.parameters
        ],
        "implementations": [
            {
                "name": i.name,
                "wires": list(i.wires(_defaults(kind))),
                "where": i.where,
                "endpoints": i.endpoints,
                "priority": i.priority,
                "why": i.probe(),
            }
            for i in kind.implementations
        ],
    }


def _defaults(kind: ChunnelType) -> dict[str, Any]:
    return {p.name: p.default for p in kind.parameters if p.default is not REQUIRED}
