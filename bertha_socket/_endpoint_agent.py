"""What endpoints of `bertha_socket.new` have to do with this host's agent: it lists their listeners, and
finds out which chunnels a connection is to have.  Those run in the application (OFFER of core/protocol.h).

Without an agent nothing here works, and the endpoints negotiate on the connection itself.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

from bertha_socket import _door
from bertha_socket._version import __version__
from bertha_socket.agent import addresses, client, messages, netlink, paths, reach
from bertha_socket.agent.memory import netns_cookie
from bertha_socket.agent.messages import DagNeed, Op, Verdict
from bertha_socket.negotiation.offer import Offer
from bertha_socket.negotiation.plan import LEFT_OUT

__all__ = ["Advice", "Agent"]

#: As the shim's (native/core/carried.c), for the first answer about a destination.
_PATIENCE_MS: Final = 300


class Advice(NamedTuple):
    """What the agent says of a destination."""

    verdict: Verdict
    plan: bytes = b""
    #: One line: why there is no plan.
    detail: str = ""

    def left_out(self) -> str:
        """For the log: what goes without a plan that was preferred, and why."""
        return self.detail if self.detail.startswith(LEFT_OUT) else ""


class Agent:
    """A connection to the agent that belongs to one endpoint.  What was registered by it ends with it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @classmethod
    def find(cls, name: str, offer: Offer) -> Agent | None:
        """The agent, told of the endpoint's offer; None: there is none that could be used."""
        if _door.disabled():
            return None
        try:
            sock = client.connect(paths.default_path(dict(os.environ)))
        except OSError:
            return None
        agent = cls(sock)
        try:
            if agent._ask(Op.HELLO, _hello(name)) is None or agent._ask(Op.OFFER, offer.encode()) is None:
                raise OSError("refused")
        except OSError:
            agent.close()
            return None
        return agent

    def _ask(self, op: Op, body: bytes, fds: tuple[int, ...] = ()) -> bytes | None:
        """The answer's body; None: refused.  Raises OSError."""
        status, answer, got = client.ask(self._sock, op, body, fds)
        for fd in got:  # memory for shims
            os.close(fd)
        return None if status else answer

    def register(self, sock: socket.socket) -> bool:
        """Lists a listening socket as one whose connections have chunnels.  False: it was refused."""
        with (
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE) as route,
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_SOCK_DIAG) as diag,
        ):
            fds = (sock.fileno(), route.fileno(), diag.fileno())
            answer = self._ask(Op.LISTEN, messages.LISTEN.pack(0), fds)
            if answer is None:
                return False
            _, _, need = _unpacked(messages.LISTEN_REPLY, answer)
            if need != DagNeed.NONE:
                # The agent is in another network namespace, and other hosts ask in this one.
                with ExitStack() as stack:
                    ports = [stack.enter_context(port) for port in _agents_ports()]
                    if ports:
                        self._ask(Op.LISTEN, messages.LISTEN.pack(0), (*fds, *(p.fileno() for p in ports)))
        return True

    def advice(
        self, host: str, port: int, family: int, *, fresh: bool = False, datagrams: bool = False
    ) -> Advice:
        """Which chunnels a connection to `host` (a numeric address) is to have.  `fresh`: the plan of before
        was refused.  `datagrams`: it is about UDP.  Raises OSError: no answer."""
        flags = messages.NEGOTIATE_FRESH if fresh else 0
        flags |= messages.NEGOTIATE_DATAGRAMS if datagrams else 0
        with (
            socket.socket(family, socket.SOCK_STREAM) as probe,
            socket.socket(family, socket.SOCK_DGRAM) as other,
        ):
            netns = netns_cookie(probe.fileno())
            body = messages.NEGOTIATE.pack(addresses.from_text(host), port, flags, _PATIENCE_MS, netns)
            answer = self._ask(Op.NEGOTIATE, body, (probe.fileno(), other.fileno()))
        if answer is None:
            return Advice(Verdict.NOBODY)
        head = messages.NEGOTIATE_REPLY.size
        verdict, _, _, size, _, _, _, detail = _unpacked(messages.NEGOTIATE_REPLY, answer[:head])
        if verdict not in list(Verdict):
            raise OSError(errno.EPROTO, "the agent's answer makes no sense")
        text = detail.partition(b"\0")[0].decode("utf-8", "replace")
        return Advice(Verdict(verdict), answer[head : head + size], text)

    def fileno(self) -> int:
        """Readable when the agent has ended."""
        return self._sock.fileno()

    def gone(self) -> bool:
        """Whether the agent has ended: what was registered with it is listed no more."""
        poll = select.poll()  # it says nothing unasked, so anything to read is its end
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Ends what was registered."""
        self._sock.close()


def _unpacked(form: struct.Struct, data: bytes) -> tuple[Any, ...]:
    """Raises OSError: it is not as long as that."""
    if len(data) != form.size:
        raise OSError(errno.EPROTO, "the agent's answer makes no sense")
    return form.unpack(data)


def _hello(name: str) -> bytes:
    exe = os.readlink("/proc/self/exe")
    with open("/proc/self/cmdline", "rb") as file:
        arguments = file.read()[: 2048 - 1]
    return messages.HELLO.pack(
        os.getpid(),
        messages.LAYOUT_VERSION,
        os.fsencode(os.path.basename(exe))[:63],
        name.encode("utf-8", "replace")[:63],
        os.fsencode(exe)[:511],
        b"",  # the policy is in the offer
        arguments,
        len(arguments),
        __version__.encode()[:31],
    )


def _agents_ports() -> list[socket.socket]:
    """Where other hosts' agents ask, by connections and by datagrams; none where somebody listens there
    already, or where this host's agent is to speak with no other."""
    try:
        listening = reach.open_port(reach.port())
    except ValueError:  # the agent says so
        return []
    if isinstance(listening, str):
        return []
    letters = reach.open_letters(listening)
    return [listening] if letters is None else [listening, letters]
