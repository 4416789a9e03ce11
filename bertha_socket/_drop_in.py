"""stdlib `socket` once more, with a `socket` class whose connections are negotiated: what
`import bertha_socket as socket` shows.

The functions that make sockets (create_connection, create_server, ...) are the running Python's own, with
our class in the place of its: so they are right for every version.
"""

from __future__ import annotations

import contextlib
import contextvars
import socket as _stdlib
import types
from collections.abc import Callable, Iterator
from typing import Any

from bertha_socket import _door
from bertha_socket._required import required

__all__ = ["NAMES", "names", "own_chunnels"]


class socket(_stdlib.socket):
    """stdlib's `socket.socket`; connections that it makes or takes are carried by the best way there is.

    Where nothing better than the kernel's TCP can be had, or the shim cannot be loaded, it is stdlib's; where
    the policy requires chunnels, that is an OSError.
    """

    __slots__ = ()

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        """As stdlib's; PolicyError (an OSError): the policy file makes no sense."""
        if fileno is None and family in (-1, _stdlib.AF_INET, _stdlib.AF_INET6):
            with _opted():  # a UDP socket takes part from its beginning
                super().__init__(family, type, proto)
        else:
            super().__init__(family, type, proto, fileno)

    def listen(self, *backlog: int) -> None:
        """As stdlib's."""
        with _opted():
            super().listen(*backlog)

    def connect(self, address: Any, /) -> None:
        """As stdlib's."""
        with _opted():
            super().connect(address)

    def connect_ex(self, address: Any, /) -> int:
        """As stdlib's."""
        with _opted():
            return super().connect_ex(address)

    def accept(self) -> tuple[_stdlib.socket, Any]:
        """As stdlib's; the connection is one of ours too."""
        connection, address = super().accept()
        timeout = connection.gettimeout()
        ours = socket(connection.family, connection.type, connection.proto, fileno=connection.detach())
        ours.settimeout(timeout)
        return ours, address


_own: contextvars.ContextVar[bool] = contextvars.ContextVar("own", default=False)


@contextlib.contextmanager
def own_chunnels() -> Iterator[None]:
    """Sockets of ours that connect within this block do so for somebody who runs the chunnels himself."""
    token = _own.set(True)
    try:
        yield
    finally:
        _own.reset(token)


@contextlib.contextmanager
def own_listening() -> Iterator[None]:
    """Within this block the library in this process tells the agent of no sockets that begin to listen."""
    with own_chunnels(), _opted():
        yield


def _opted() -> _door.connecting:
    try:
        _door.open_door(_door.Origin.NONE, own=_own.get())
    except _door.DoorError:
        # The invariants: never break the program (`bertha doctor` says what is wrong), but what is required
        # is never dropped.
        if required().here and not _own.get():  # who has his own chunnels refuses by himself
            raise
    return _door.connecting(own=_own.get())


def _again(function: types.FunctionType, names: dict[str, Any]) -> Callable[..., Any]:
    copy = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__doc__ = function.__doc__
    copy.__annotations__ = function.__annotations__
    copy.__module__ = "bertha_socket"
    return copy


def _make() -> dict[str, Any]:
    socket.__module__ = "bertha_socket"
    names: dict[str, Any] = dict(vars(_stdlib))
    names["socket"] = socket
    for name in ("create_connection", "create_server", "fromfd", "socketpair", "has_dualstack_ipv6"):
        found = names.get(name)
        if isinstance(found, types.FunctionType):
            names[name] = _again(found, names)
    return names


#: stdlib's names with ours in place.
NAMES = _make()


def names() -> list[str]:
    """The public names: stdlib's own list."""
    return list(_stdlib.__all__)
