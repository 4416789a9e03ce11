"""Asking an agent from Python: is it there, what does it know, stop.  For the commands, not for programs.

One SOCK_SEQPACKET connection per question (native/core/protocol.h).  The answer to STATUS comes as a memfd
that holds a JSON text.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from typing import Any

from bertha_socket.agent import messages

__all__ = ["AgentError", "is_serving", "status", "stop"]

_PATIENCE = 5.0  # seconds for the agent to answer; it needs milliseconds
_TEXT_MAX = 256 << 20  # bytes of a STATUS text
_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid


class AgentError(OSError):
    """No agent that may be trusted answers; the message names its socket and the remedy."""


def _dial(path: str, patience: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(patience)
        connection.connect(path)
        uid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
    except OSError as error:
        connection.close()
        number = error.errno or errno.ETIMEDOUT
        raise AgentError(
            number, f"{path}: no agent answers ({os.strerror(number)}); start one: bertha agent"
        ) from None
    if os.geteuid() not in (0, uid) and uid != 0:
        connection.close()
        raise AgentError(
            errno.EPERM, f"{path}: this agent belongs to another user (uid {uid}); set BERTHA_AGENT"
        )
    return connection


def is_serving(path: str) -> bool:
    """Whether an agent of this user, or of root, accepts connections at `path`."""
    try:
        connection = _dial(path, 1.0)
    except AgentError:
        return False
    # Root may look at anybody's agent, but a program of root's is not to be served by it.
    uid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
    connection.close()
    return uid in (0, os.geteuid())


def _ask(path: str, op: messages.Op) -> tuple[bytes, list[int]]:
    """The reply's body and descriptors.  Raises AgentError."""
    with _dial(path, _PATIENCE) as connection:
        try:
            connection.send(messages.HEADER.pack(messages.MAGIC, messages.VERSION, op, 1, 0))
            data, fds, _flags, _from = socket.recv_fds(
                connection, messages.MESSAGE_MAX, messages.RESOLVE_MAX, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            number = error.errno or errno.ETIMEDOUT
            text = f"{path}: the agent does not answer ({os.strerror(number)}); 'bertha doctor' says more"
            raise AgentError(number, text) from None
    problem = None
    if not data and op is not messages.Op.STOP:
        problem = "the agent closed the connection"
    elif data and len(data) < messages.HEADER.size:
        problem = "the answer is too short"
    elif data:
        magic, version, answered, _seq, why = messages.HEADER.unpack_from(data)
        if (magic, version, answered) != (messages.MAGIC, messages.VERSION, op):
            problem = "the answer is not of this version's protocol: stop that agent and start a new one"
        elif why:
            problem = f"the agent refused (reason {why})"
    if problem:
        for fd in fds:
            os.close(fd)
        raise AgentError(errno.EPROTO, f"{path}: {problem}")
    return data[messages.HEADER.size :], fds


def status(path: str) -> dict[str, Any]:
    """What the agent knows: see `bertha_socket.agent` for the keys.  Raises AgentError."""
    _body, fds = _ask(path, messages.Op.STATUS)
    try:
        if not fds:
            raise AgentError(errno.EPROTO, f"{path}: the answer lacks its text")
        size = min(os.fstat(fds[0]).st_size, _TEXT_MAX)
        with open(os.dup(fds[0]), "rb") as file:
            file.seek(0)
            text = file.read(size)
        found = json.loads(text)
    except ValueError:
        raise AgentError(errno.EPROTO, f"{path}: the answer is not JSON") from None
    finally:
        for fd in fds:
            os.close(fd)
    if not isinstance(found, dict):
        raise AgentError(errno.EPROTO, f"{path}: the answer is not a JSON object")
    return found


def stop(path: str) -> None:
    """Asks the agent to leave.  Raises AgentError."""
    for fd in _ask(path, messages.Op.STOP)[1]:
        os.close(fd)
