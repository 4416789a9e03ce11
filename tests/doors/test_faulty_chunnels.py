"""A chunnel of an application's own that raises or blocks, beneath bertha_socket.new: its own connection
ends, or waits, and no other one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

import pytest

import bertha_socket
from bertha_socket import keys
from bertha_socket._endpoint import Connection, EndpointError, Listener
from bertha_socket._endpoint_datagram_connection import DatagramConnection
from bertha_socket._endpoint_datagrams import DatagramListener
from bertha_socket.chunnels import Interface, Pipe, octets, register_chunnel, unregister
from tests.doors.test_datagram_endpoint import alone as alone

#: A chunnel that waits does so for this, and for as long as nothing else can have taken.
_GO_ON = threading.Event()
_PATIENCE = 10.0


class Moody(Pipe):
    """Raises at one word that comes, and waits at another."""

    def up(self, item: Any) -> tuple[list[bytes], list[bytes]]:
        """Here, so that it is the server's."""
        if self.side == "server" and b"poison" in octets(item, "moody"):
            raise ValueError("I cannot stand that word")
        if self.side == "server" and b"wait" in item:
            _GO_ON.wait(_PATIENCE)
        return [item], []


class MoodyMessages(Moody):
    """The same for messages."""

    upper = lower = Interface.MESSAGES


@pytest.fixture(autouse=True)
def moody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both are registered, as an application does it."""
    monkeypatch.setattr(keys, "find", lambda: None)
    register_chunnel("moody", Moody)
    register_chunnel("moody_messages", MoodyMessages)
    _GO_ON.clear()
    yield
    _GO_ON.set()
    unregister("moody")
    unregister("moody_messages")


@contextmanager
def _echo(dag: str) -> Iterator[Listener | DatagramListener]:
    """A server that sends back what it gets, in a thread for each client."""
    threads: list[threading.Thread] = []

    def serve(connection: Connection | DatagramConnection) -> None:
        with suppress(OSError), connection:
            for item in connection:
                connection.send(item)

    def accept(listener: Listener | DatagramListener) -> None:
        with suppress(OSError):
            for connection in listener:
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

    with bertha_socket.new("server", dag).listen(("127.0.0.1", 0)) as listener:
        threads.append(threading.Thread(target=accept, args=(listener,)))
        threads[0].start()
        try:
            yield listener
        finally:
            _GO_ON.set()
            listener.close()
            for thread in threads:
                thread.join(20)
                assert not thread.is_alive()


def _to(listener: Listener | DatagramListener) -> AbstractContextManager[Any]:
    return bertha_socket.new("client").connect(listener.address)


@pytest.mark.parametrize(
    ("dag", "error"),
    [
        ("moody()", ConnectionResetError),
        ("moody_messages() |> reliable()", EndpointError),
        ("moody_messages() |> udp()", EOFError),
    ],
)
def test_its_fault_is_logged_and_its_own(
    dag: str, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """By the logger of our module, which nobody has configured; the program sees an error, and not an end."""
    with _echo(dag) as listener, _to(listener) as faulty, _to(listener) as other:
        for connection in (faulty, other):
            connection.send(b"hello")
            assert connection.recv(10) == b"hello"
        assert not caplog.records
        faulty.send(b"poison")
        with pytest.raises(error):
            faulty.recv(10)
        other.send(b"unhurt")
        assert other.recv(10) == b"unhurt"
        with _to(listener) as later:
            later.send(b"as well")
            assert later.recv(10) == b"as well"
    (said,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert said.name.startswith("bertha_socket.")
    assert "Traceback" in said.getMessage() and "ValueError: I cannot stand that word" in said.getMessage()
    assert said.getMessage().startswith("server") and "127.0.0.1:" in said.getMessage()


def test_the_end_that_it_runs_at_is_told_which_and_where() -> None:
    with bertha_socket.new("server", "moody()").listen(("127.0.0.1", 0)) as listener:
        found: list[Connection] = []
        thread = threading.Thread(target=lambda: found.append(listener.accept()))
        thread.start()
        with bertha_socket.new("client").connect(listener.address) as client:
            thread.join(10)
            with found[0] as connection:
                client.send(b"poison")
                with pytest.raises(EndpointError, match=r"Moody raised ValueError: .*\.py line \d+\)"):
                    connection.recv(10)


def test_who_leaves_in_the_midst_resets() -> None:
    """What has come so far is not taken for all of it."""
    with _echo("moody()") as listener, _to(listener) as client:
        client.send(b"poison")
        with pytest.raises(ConnectionResetError):
            client.recv(10)


def test_one_that_blocks_on_datagrams_holds_its_own_socket_alone() -> None:
    """Other endpoints of the process go on, whether their chunnels are ours or not."""
    with ExitStack() as stack:
        listener = stack.enter_context(_echo("moody_messages() |> reliable()"))
        others = [stack.enter_context(_echo(dag)) for dag in ("reliable()", "moody_messages() |> udp()")]
        waiting = stack.enter_context(_to(listener))
        clients = [stack.enter_context(_to(other)) for other in others]
        waiting.send(b"hello")
        assert waiting.recv(10) == b"hello"
        began = time.monotonic()
        waiting.send(b"wait")
        with pytest.raises(TimeoutError):
            waiting.recv(0.3)
        for client in clients:
            client.send(b"unhurt")
            assert client.recv(_PATIENCE / 2) == b"unhurt"
        clients.append(stack.enter_context(_to(others[0])))
        clients[-1].send(b"a new one")
        assert clients[-1].recv(_PATIENCE / 2) == b"a new one"
        assert time.monotonic() - began < _PATIENCE / 2
        _GO_ON.set()
        assert waiting.recv(10) == b"wait"


def test_threads_of_datagrams_are_no_more_than_it_takes() -> None:
    """One for all sockets whose chunnels are ours."""

    def running() -> int:
        return sum(t.name == "bertha-datagrams" for t in threading.enumerate())

    unregister("moody")
    unregister("moody_messages")
    with ExitStack() as stack:
        listeners = [stack.enter_context(_echo("reliable()")) for _ in range(3)]
        for listener in listeners:
            stack.enter_context(_to(listener))
        assert running() == 1
