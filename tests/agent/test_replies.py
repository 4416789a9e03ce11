"""What an agent answers, of whatever version and whosever it is: whoever asks has an OSError, or sense."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertha_socket import _endpoint_agent
from bertha_socket.agent import client, messages
from bertha_socket.agent.client import AgentError
from bertha_socket.agent.messages import Op, Verdict
from tests.agent.shim import listen


@contextlib.contextmanager
def answered(reply: bytes, fds: tuple[int, ...] = ()) -> Iterator[socket.socket]:
    """A connection by which that answer comes to the first question, and then the end."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        near.settimeout(10)
        socket.send_fds(far, [reply], fds)
        far.shutdown(socket.SHUT_WR)
        yield near


def header(op: int, status: int = 0) -> bytes:
    return messages.HEADER.pack(messages.MAGIC, messages.VERSION, op, 1, status)


_HEADERS = st.builds(
    messages.HEADER.pack,
    st.sampled_from([messages.MAGIC] * 9 + [0]),
    st.sampled_from([messages.VERSION] * 9 + [99]),
    st.sampled_from([Op.NEGOTIATE, Op.LISTEN, Op.STATUS]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 0, 0, 7, 2**32 - 1]),
)
_VERDICTS = st.builds(
    lambda verdict, size, plan: (
        messages.NEGOTIATE_REPLY.pack(verdict, 0, 0, size, 0, 0, 0, b"\xff\0why") + plan
    ),
    st.sampled_from([*Verdict, 99]),
    st.integers(0, 9999),
    st.binary(max_size=20),
)
_REPLIES = st.one_of(
    st.binary(min_size=1, max_size=80),
    st.builds(lambda head, body: head + body, _HEADERS, st.binary(max_size=600) | _VERDICTS),
)


@settings(max_examples=200)
@given(_REPLIES, st.sampled_from([Op.NEGOTIATE, Op.LISTEN, Op.STATUS]), st.booleans())
def test_any_reply(reply: bytes, op: Op, with_descriptor: bool) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with answered(reply, (0,) if with_descriptor else ()) as sock, contextlib.suppress(OSError):
        status, body, fds = client.ask(sock, op)
        assert reply.endswith(body) and isinstance(status, int)
        for fd in fds:
            os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before


@settings(max_examples=200)
@given(_REPLIES, st.booleans())
def test_any_advice(reply: bytes, registers: bool) -> None:
    with answered(reply) as sock, contextlib.suppress(OSError):
        agent = _endpoint_agent.Agent(sock)
        if registers:
            with listen() as listening:
                assert agent.register(listening) in (True, False)
        else:
            found = agent.advice("127.0.0.1", 80, socket.AF_INET)
            assert found.verdict in list(Verdict) and reply.endswith(found.plan)


def _memory(text: bytes) -> int:
    fd = os.memfd_create("status")
    os.write(fd, text)
    return fd


def _pipe() -> int:
    near, far = os.pipe()
    os.close(far)
    return near


@pytest.mark.parametrize(
    "make",
    [
        lambda: _memory(b""),
        lambda: _memory(b"[1, 2]"),
        lambda: _memory(b"[" * 100_000),
        lambda: _memory(b"\xff"),
        lambda: _memory(b'{"agent": '),
        _pipe,
        lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY),
        None,
    ],
    ids=["nothing", "a list", "deep", "no UTF-8", "half", "pipe", "directory", "no descriptor"],
)
def test_a_status_that_makes_no_sense(make: Callable[[], int] | None, tmp_path: Any) -> None:
    path = str(tmp_path / "a.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(path)
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                fds = [make()] if make is not None else []
                socket.send_fds(connection, [header(Op.STATUS)], fds)
                for fd in fds:
                    os.close(fd)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(AgentError):
            client.agent_status(path)
        thread.join(10)


@settings(max_examples=100)
@given(
    st.recursive(st.none() | st.floats() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v))
)
def test_any_json(value: object) -> None:
    """It is an object, or an error; an object's fields are for those who show them to look at."""
    fd = _memory(json.dumps(value).encode())
    with answered(header(Op.STATUS), (fd,)) as sock:
        os.close(fd)
        original, client.connect = client.connect, lambda path, **_: sock  # type: ignore[assignment]
        try:
            assert isinstance(client.agent_status("agent"), dict)
        except AgentError:
            assert not isinstance(value, dict)
        finally:
            client.connect = original
