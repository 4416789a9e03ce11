"""Chunnel types that a policy file brings itself, looked at without running their code in the agent.

A [[chunnel]] names a class in a module or a file.  A short-lived child imports it, with the rights of the
policy's user, and tells what the class says about itself; the carrier imports it again to run it.  Code that
raises, hangs or ends its process costs its own chunnel alone.

A forked child has all that its agent has in memory: the cluster's key, the mapped directory, other users'
links.  So code of another user runs in a fresh interpreter, and only the agent's own user's in the fork.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgpack

from bertha_socket.agent.describe import describe
from bertha_socket.agent.errands import Errands, tell_all
from bertha_socket.agent.interpreter import import_path
from bertha_socket.agent.sockets import Peer
from bertha_socket.chunnels import ChunnelType, Implementation, Interface, Parameter, all_types, wires
from bertha_socket.chunnels._types import KINDS, REQUIRED

#: Less than a shim waits for its agent.
_SECONDS: Final = 1.5
_KNOWN_SECONDS: Final = 60.0
#: A class that was not ready in time may be when its file is in the cache, or the machine less busy.
_SLOW_SECONDS: Final = 10.0
_KNOWN_MAX: Final = 256
_ANSWER_MAX: Final = 1 << 18
#: A fresh interpreter finds the package where the agent has it, and is told user, name, source, name...
#: It becomes the user when it has what it needs, which lies perhaps where that user cannot read.
_PROGRAM: Final = (
    "import sys; paths = sys.argv[1].split(':'); sys.path += [p for p in paths if p not in sys.path]\n"
    "sys.path.insert(0, paths[0])\n"
    "from bertha_socket.agent.describe import become, describe\n"
    "become(sys.argv[2])\n"
    "describe(zip(sys.argv[3::2], sys.argv[4::2]))\n"
)


class Brought(NamedTuple):
    """The types of one policy's [[chunnel]]s, and what is wrong with the others, by name."""

    types: tuple[ChunnelType, ...] = ()
    errors: tuple[tuple[str, str], ...] = ()


NOTHING: Final = Brought()


class _Key(NamedTuple):
    uid: int
    gid: int
    groups: tuple[int, ...]
    sources: tuple[tuple[str, str], ...]


_Done = Callable[[Brought], None]


class Authors:
    """Asks children, and remembers for a minute."""

    def __init__(self, errands: Errands, seconds: float = _SECONDS) -> None:
        """`seconds`: how long a child may take."""
        self._errands = errands
        self._seconds = seconds
        self._known: dict[_Key, tuple[float, Brought]] = {}
        self._asked: dict[_Key, list[_Done]] = {}

    def look(
        self, peer: Peer, groups: tuple[int, ...], sources: Mapping[str, str], done: _Done
    ) -> Brought | None:
        """What these sources bring, if it is known; else `done` is called with it later."""
        key = _Key(peer.uid, peer.gid, groups, tuple(sorted(sources.items())))
        known = self._known.get(key)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        waiting = self._asked.setdefault(key, [])
        waiting.append(done)
        if len(waiting) == 1:
            self._errands.run(
                peer.uid, self._seconds, lambda fd: _tell(fd, key), lambda fd: self._told(key, fd)
            )
        return None

    def _told(self, key: _Key, fd: int | None) -> None:
        asked = self._asked.pop(key)
        data = b"" if fd is None else os.pread(fd, _ANSWER_MAX + 1, 0)
        try:
            brought = parse(data, dict(key.sources))
        except Exception:  # whatever it told: those who ask are answered
            brought = parse(b"", dict(key.sources))
            data = b""
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        lasts = _KNOWN_SECONDS if data else _SLOW_SECONDS
        self._known[key] = (time.monotonic() + lasts, brought)
        tell_all(asked, brought)


# -- in the child -----------------------------------------------------------------------------------------


def _tell(outcome: int, key: _Key) -> None:
    os.dup2(outcome, 0)
    os.closerange(1, 1 << 20)  # whatever the code does, nothing of the agent's is open
    for _ in (1, 2):  # the lowest that are free
        os.set_inheritable(os.open(os.devnull, os.O_WRONLY), True)
    if key.uid == os.geteuid():
        describe(key.sources)
        return
    said = [f"{key.uid}:{key.gid}:{','.join(map(str, key.groups))}"]
    said += [word for pair in key.sources for word in pair]
    os.execve(
        sys.executable, [sys.executable, "-I", "-c", _PROGRAM, import_path(), *said], {"PATH": os.defpath}
    )


# -- in the agent -----------------------------------------------------------------------------------------


def parse(data: bytes, sources: Mapping[str, str]) -> Brought:
    """What a child has told; the code that it ran may have told anything."""
    try:
        if len(data) > _ANSWER_MAX:
            raise ValueError("too much")
        found = msgpack.Unpacker(max_buffer_size=_ANSWER_MAX)
        found.feed(data)
        told = found.unpack() if data else {}
        if not isinstance(told, dict):
            raise ValueError("no map")
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        told = {}
    ours = {t.name for t in all_types()}
    types: list[ChunnelType] = []
    errors: list[tuple[str, str]] = []
    for name, source in sources.items():
        said = told.get(name)
        if name in ours:
            errors.append((name, f"{source}: there is a chunnel type {name!r} already"))
        elif isinstance(said, dict) and isinstance(said.get("error"), str):
            errors.append((name, " ".join(said["error"].split())[:300]))
        else:
            try:
                types.append(_type(name, said))
            except (ValueError, TypeError, KeyError, AttributeError):
                errors.append((name, f"{source}: its class could not be looked at in {_SECONDS:g} s"))
    return Brought(tuple(types), tuple(errors))


def _text(value: Any, most: int = 64) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise ValueError
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > 1_000_000:
        raise ValueError
    return value


def _type(name: str, said: Any) -> ChunnelType:
    kind = ChunnelType(
        name=name,
        summary=_text(said["summary"], 1000),
        parameters=tuple(_parameter(p) for p in said["parameters"][:32]),
        upper=Interface(said["upper"]),
        lower=Interface(said["lower"]),
        endpoints=_text(said["endpoints"]),
        layer=_whole(said["layer"]),
        implementations=tuple(_implementation(name, i) for i in said["implementations"][:16]),
    )
    if said["dictated"] is False:
        setattr(kind, "dictated", False)  # noqa: B010 (not every version of the class has it)
    return kind


def _parameter(said: Any) -> Parameter:
    if said["kind"] not in KINDS or said["agree"] not in ("server", "equal", "own"):
        raise ValueError
    default = REQUIRED if said["required"] is True else said["default"]
    return Parameter(_text(said["name"]), said["kind"], "", default, None, said["agree"])


def _implementation(kind: str, said: Any) -> Implementation:
    why = said["why"]
    if why is not None:
        why = _text(why, 1000)
    return Implementation(
        name=_text(said["name"]),
        type=kind,
        wires=wires(*(_text(w) for w in said["wires"][:8])),
        where=_text(said["where"]),
        endpoints=_text(said["endpoints"]),
        priority=_whole(said["priority"]),
        carrier="python",
        probe=lambda: why,
    )
