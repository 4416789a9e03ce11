"""Kinds of differences from plain TCP that are known: each has a line in docs/users/limits.md ("Answers that
differ from TCP's").  Anything else fails the test, however rare.

Found by `python -m tests.differential.lockstep [--unix] SEED`.  A kind goes from here when its cause is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from tests.differential.lockstep import Difference

_EPOLLERR, _EPOLLHUP = 8, 16
_EPIPE, _EAGAIN, _ECONNRESET, _ENOTCONN = 32, 11, 104, 107


class Kind(NamedTuple):
    """One cause, and how its differences are told from others."""

    name: str
    implementations: frozenset[str]
    #: Words of limits.md.
    told: str
    is_it: Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], bool]


def _bits(reply: dict[str, Any]) -> dict[int, int] | None:
    """What poll or epoll said of each handle."""
    found = reply.get("events", reply.get("revents"))
    if not isinstance(found, list) or not all(isinstance(e, list) and len(e) == 2 for e in found):
        return None
    return dict(found)


def _reset_after_fin(step: dict[str, Any], plain: dict[str, Any], shim: dict[str, Any]) -> bool:
    """A call tells of the reset earlier or later, and of nothing else."""
    if step.get("op") == "recv":
        return plain.get("errno") == _ECONNRESET and shim.get("ret", -1) == 0
    if step.get("op") != "epoll_wait":
        return False
    one, other = _bits(plain), _bits(shim)
    if one is None or other is None or not (one.keys() | other.keys()):
        return False
    error = _EPOLLERR | _EPOLLHUP
    differing = [who for who in one.keys() | other.keys() if one.get(who, 0) != other.get(who, 0)]
    return all((one.get(who, 0) | other.get(who, 0)) & error for who in differing)


def _peek_while_moving(step: dict[str, Any], plain: dict[str, Any], shim: dict[str, Any]) -> bool:
    """MSG_PEEK has a beginning of what plain TCP has, of which the rest lies on the other carrier."""
    if step.get("op") != "recv" or "peek" not in step.get("flags", []):
        return False
    fewer = 0 < shim.get("ret", -1) < plain.get("ret", -1)
    lengths, plain_lengths = shim.get("lengths"), plain.get("lengths")
    if lengths is not None and plain_lengths is not None:
        fewer = len(lengths) == len(plain_lengths) and all(
            0 < a < b for a, b in zip(lengths, plain_lengths, strict=True)
        )
    data, all_data = shim.get("data"), plain.get("data")
    if fewer and isinstance(data, str) and isinstance(all_data, str) and ":" not in data + all_data:
        return all_data.startswith(data)  # longer ones are shown by a digest alone
    return fewer


def _shutdown_of_the_ended(step: dict[str, Any], plain: dict[str, Any], shim: dict[str, Any]) -> bool:
    return step.get("op") == "shutdown" and plain.get("errno") == _ENOTCONN and shim.get("ret") == 0


def _pipe_at_once(step: dict[str, Any], plain: dict[str, Any], shim: dict[str, Any]) -> bool:
    """A closed peer is answered with EPIPE at the first send."""
    return step.get("op") == "send" and plain.get("ret", -1) > 0 and shim.get("errno") == _EPIPE


def _receive_of_nothing(step: dict[str, Any], plain: dict[str, Any], shim: dict[str, Any]) -> bool:
    return (
        step.get("op") == "recv"
        and step.get("size") == 0
        and plain.get("ret") == 0
        and shim.get("errno") == _EAGAIN
    )


_ANY: Final = frozenset({"shm", "unix"})
_UNIX: Final = frozenset({"unix"})
KINDS: Final = (
    Kind(
        "a reset after a FIN", _ANY, "the reset may be reported one call later or earlier", _reset_after_fin
    ),
    Kind(
        "MSG_PEEK while a connection moves",
        _ANY,
        "`MSG_PEEK` while a connection is just moving",
        _peek_while_moving,
    ),
    Kind(
        "shutdown() of the ended", _UNIX, "`shutdown` of a connection that has ended", _shutdown_of_the_ended
    ),
    Kind("EPIPE at the first send to a closed peer", _UNIX, "`EPIPE` at the first send", _pipe_at_once),
    Kind("a receive of no bytes", _UNIX, "a receive of no bytes", _receive_of_nothing),
)


def kind_of(difference: Difference, implementation: str) -> str | None:
    """The name of the known kind; None: it is a fault."""
    step, plain, shim = difference.what, difference.plain, difference.shim
    if not (isinstance(step, dict) and isinstance(plain, dict) and isinstance(shim, dict)):
        return None
    for kind in KINDS:
        if implementation in kind.implementations and kind.is_it(step, plain, shim):
            return kind.name
    return None
