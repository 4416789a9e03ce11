"""The few requests that our own commands make of an agent: is it there, its status, stop."""

from __future__ import annotations

import array
import json
import os
import socket
from typing import Any

from bertha_socket.agent import messages
from bertha_socket.agent.messages import Op

_SECONDS = 5.0


class AgentError(OSError):
    """The agent cannot be asked; the message says why."""


def connect(path: str, seconds: float = _SECONDS) -> socket.socket:
    """A connection to the agent at `path`.  Raises OSError: nobody serves there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(seconds)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def ask(sock: socket.socket, op: Op, body: bytes = b"", fds: tuple[int, ...] = ()) -> tuple[int, bytes, list[int]]:
    """One request and its reply: status, body, descriptors (the caller's to close).

    Raises AgentError when the agent does not answer.
    """
    seq = 1
    header = messages.HEADER.pack(messages.MAGIC, messages.VERSION, op, seq, 0)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
    sock.sendmsg([header, body], ancillary)
    data, got, _, _ = socket.recv_fds(sock, messages.MESSAGE_MAX, 4, socket.MSG_CMSG_CLOEXEC)
    if len(data) < messages.HEADER.size:
        for fd in got:
            os.close(fd)
        raise AgentError(104, "the agent has ended the connection")
    _, _, _, _, status = messages.HEADER.unpack_from(data)
    return status, data[messages.HEADER.size :], got


def agent_status(path: str) -> dict[str, Any]:
    """The agent's own account (see status.py): agent, processes, listeners, links, connections.

    Raises OSError: nobody serves at `path`, or it does not answer.
    """
    with connect(path) as sock:
        status, _, fds = ask(sock, Op.STATUS)
        if status or len(fds) != 1:
            for fd in fds:
                os.close(fd)
            raise AgentError(5, f"{path}: the agent gave no status (reason {status})")
        with open(fds[0], "rb") as file:
            document: dict[str, Any] = json.load(file)
    return document


def stop_agent(path: str) -> bool:
    """Ends the agent at `path` and waits for its end; False when there was none.  Raises OSError."""
    try:
        sock = connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    with sock:
        status, _, _ = ask(sock, Op.STOP)
        if status:
            raise AgentError(1, f"{path}: this agent is another user's; ask that user to stop it")
        while sock.recv(1):  # its end of the connection goes with it
            pass
    return True
