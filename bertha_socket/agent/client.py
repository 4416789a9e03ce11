"""The few requests that our own commands make of an agent: is it there, its status, stop.

One SOCK_SEQPACKET connection per question (native/core/protocol.h).  The answer to STATUS comes as a memfd
that holds a JSON text.  An agent has to be ours or root's, as the shim demands too; only root may put
questions to anybody's.
"""

from __future__ import annotations

import array
import errno
import json
import os
import socket
import struct
from typing import Any, Final

from bertha_socket.agent import messages
from bertha_socket.agent.messages import Op

__all__ = ["AgentError", "agent_status", "ask", "connect", "is_serving", "stop_agent"]

_SECONDS: Final = 5.0  # for an answer; it takes milliseconds
_TEXT_MAX: Final = 256 << 20  # bytes of a STATUS text
_UCRED: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class AgentError(OSError):
    """The agent cannot be asked; the message names its socket, the cause and the remedy."""


def _owner(sock: socket.socket) -> int:
    return int(_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1])


def connect(path: str, seconds: float = _SECONDS, *, anybodys: bool = False) -> socket.socket:
    """A connection to the agent at `path`; `anybodys`: for root, also to another user's.

    Raises OSError when nobody serves there, AgentError (EPERM) when it is the wrong user's.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(seconds)
        sock.connect(path)
        uid, me = _owner(sock), os.geteuid()
        if uid not in (0, me) and not (anybodys and me == 0):
            text = f"{path}: this agent belongs to another user (uid {uid}); set BERTHA_AGENT"
            raise AgentError(errno.EPERM, text)
    except BaseException:
        sock.close()
        raise
    return sock


def is_serving(path: str) -> bool:
    """Whether an agent that a program of ours may use accepts connections at `path`."""
    try:
        connect(path, 1.0).close()
    except OSError:
        return False
    return True


def _broken(sock: socket.socket, problem: str, number: int = errno.EPROTO) -> AgentError:
    try:
        path = os.fsdecode(sock.getpeername())
    except OSError:
        path = "agent"
    return AgentError(number, f"{path}: {problem}")


def ask(
    sock: socket.socket, op: Op, body: bytes = b"", fds: tuple[int, ...] = ()
) -> tuple[int, bytes, list[int]]:
    """One request and its reply: status, body, descriptors (the caller's to close).

    Raises AgentError when the agent does not answer, or not in this version's protocol.
    """
    header = messages.HEADER.pack(messages.MAGIC, messages.VERSION, op, 1, 0)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
    try:
        sock.sendmsg([header, body], ancillary)
        data, got, _, _ = socket.recv_fds(sock, messages.MESSAGE_MAX, 4, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        why = error.strerror or "no answer in time"
        raise _broken(sock, f"the agent does not answer ({why})", error.errno or errno.ETIMEDOUT) from None
    problem = None
    status = 0
    if not data:
        problem = "the agent has ended the connection"
    elif len(data) < messages.HEADER.size:
        problem = "the agent's answer is too short"
    else:
        magic, version, answered, _seq, status = messages.HEADER.unpack_from(data)
        if (magic, version, answered) != (messages.MAGIC, messages.VERSION, op):
            problem = "the agent speaks another protocol; stop it, the next bertha-run starts a new one"
    if problem is not None:
        for fd in got:
            os.close(fd)
        raise _broken(sock, problem)
    return status, data[messages.HEADER.size :], got


def agent_status(path: str) -> dict[str, Any]:
    """The agent's own account (see status.py): agent, processes, listeners, links, connections.

    Raises AgentError: nobody serves at `path`, or the answer makes no sense.
    """
    try:
        sock = connect(path, anybodys=True)
    except AgentError:
        raise
    except OSError as error:
        number = error.errno or errno.ETIMEDOUT
        text = f"{path}: no agent answers ({os.strerror(number)}); start one: bertha agent"
        raise AgentError(number, text) from None
    with sock:
        status, _, fds = ask(sock, Op.STATUS)
        try:
            if status or len(fds) != 1:
                raise _broken(sock, f"the agent gave no status (reason {status})")
            size = min(os.fstat(fds[0]).st_size, _TEXT_MAX)
            with open(fds[0], "rb", closefd=False) as file:
                file.seek(0)
                document = json.loads(file.read(size))
        except (ValueError, RecursionError):
            raise _broken(sock, "the agent's status is not JSON") from None
        except OSError as error:
            raise _broken(sock, f"the agent's status cannot be read ({error.strerror})") from None
        finally:
            for fd in fds:
                os.close(fd)
        if not isinstance(document, dict):
            raise _broken(sock, "the agent's status is not a JSON object")
    return document


def stop_agent(path: str) -> bool:
    """Ends the agent at `path` and waits for its end; False when there was none.  Raises OSError."""
    try:
        sock = connect(path, anybodys=True)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    with sock:
        status, _, fds = ask(sock, Op.STOP)
        for fd in fds:
            os.close(fd)
        if status:
            raise AgentError(errno.EPERM, f"{path}: this agent is another user's; ask that user to stop it")
        while sock.recv(1):  # its end of the connection goes with it
            pass
    return True
