"""One client's unix connection: messages in, answers out, never waiting for the client.

A client has at most one request under way, so a socket that takes no answer is a client that does not
read, and a message that is too long, has too many descriptors or does not parse is a client that does not
speak the protocol.  Either way its connection ends; nobody else notices.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from typing import Final

from bertha_socket.agent import limits, messages, sockets
from bertha_socket.agent.handlers import Answer, Descriptors, Service, handle
from bertha_socket.agent.messages import BadMessage, Op, Request
from bertha_socket.agent.model import Process
from bertha_socket.reasons import Reason as Why

_INT: Final = array.array("i").itemsize
_CONTROL: Final = socket.CMSG_SPACE(limits.DESCRIPTORS_PER_MESSAGE * _INT)


class Connection:
    """A caller (see handlers.Caller) and its socket."""

    def __init__(self, sock: socket.socket, peer: sockets.Peer, since: float) -> None:
        self.sock = sock
        self.peer = peer
        self.since = since
        self.pidfd = sockets.peer_pidfd(sock)
        self.process: Process | None = None
        self.closed = False
        #: An answer is being prepared; nothing more is read meanwhile.
        self.pending: Request | None = None
        #: Not watched for that reason.
        self.paused = False

    def waits(self) -> bool:
        """Whether an answer is being prepared."""
        return self.pending is not None

    def close(self) -> None:
        """Ends the connection; the caller unregisters it first."""
        self.closed = True
        self.sock.close()
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None

    def readable(self, service: Service) -> bool:
        """Serves one message.  False when the connection is to be ended."""
        try:
            data, control, flags, _ = self.sock.recvmsg(
                messages.MESSAGE_MAX + 1, _CONTROL, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        fds = _descriptors(control)
        with fds:
            if not data or flags & socket.MSG_TRUNC:
                return False
            cut = bool(flags & socket.MSG_CTRUNC)
            if cut and len(fds) >= limits.DESCRIPTORS_PER_MESSAGE:
                return False
            try:
                request = messages.parse(data)
                if cut:  # our own limit: the client is not to blame
                    answer: Answer | None = Answer(Why.NO_DESCRIPTOR)
                else:
                    self.pending = request
                    answer = handle(service, self, request, fds)
            except BadMessage:
                return False
            if request.op == Op.UNLISTEN:
                self.pending = None
                return True
            return answer is None or self.send(request, answer)

    def send(self, request: Request, answer: Answer) -> bool:
        """Answers.  False when the connection is to be ended."""
        self.pending = None
        fds = answer.fds + answer.given
        try:
            ancillary = (
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
            )
            data = messages.reply(request.op, request.seq, answer.status, answer.body)
            self.sock.sendmsg([data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return False
        finally:
            for fd in answer.given:
                with contextlib.suppress(OSError):
                    os.close(fd)
        return True


def _descriptors(control: list[tuple[int, int, bytes]]) -> Descriptors:
    fds = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _INT])
    return Descriptors(fds.tolist())
