"""`http2` holds no more for the other end than one message, however that spreads its streams."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from bertha_socket.chunnels._types import ChunnelError, Context
from bertha_socket.chunnels.http2 import MESSAGE_MAX, Http2Pipe

_PART = 16384


def pipe(side: str) -> Http2Pipe:
    return Http2Pipe({}, "h2", side, cast(Context, SimpleNamespace(counts={}, local="", peer="")))


class Ends:
    """A client and a server, and what lies between them."""

    def __init__(self) -> None:
        self.client, self.server = pipe("client"), pipe("server")
        self.to_server, self.to_client = b"".join(self.client.start()), b"".join(self.server.start())

    def turn(self) -> tuple[list[Any], list[Any]]:
        """Everything arrives; the messages at the client and at the server."""
        at_client: list[Any] = []
        at_server: list[Any] = []
        while self.to_client or self.to_server:
            data, self.to_server = self.to_server, b""
            messages, out = self.server.up(data)
            at_server += messages
            self.to_client += b"".join(out)
            data, self.to_client = self.to_client, b""
            messages, out = self.client.up(data)
            at_client += messages
            self.to_server += b"".join(out)
        return at_client, at_server

    def flush(self, sender: Any) -> None:
        """What a hostile end has put together by its own h2."""
        data = sender._h2.data_to_send()
        if sender is self.client:
            self.to_server += data
        else:
            self.to_client += data


@pytest.fixture
def ends() -> Ends:
    return Ends()


@pytest.mark.parametrize("settled", [False, True], ids=["before the settings", "after them"])
@pytest.mark.parametrize("count", [99, 100, 1000])
def test_many_messages_at_once(ends: Ends, count: int, settled: bool) -> None:
    """Our own sender keeps to the limits of the other end, also before it has been told of them."""
    if settled:
        ends.turn()
    sent = [b"%d" % i for i in range(count)]
    for message in sent:
        ends.to_server += b"".join(ends.client.down(message))
        ends.to_client += b"".join(ends.server.down(message))
    assert ends.turn() == (sent, sent)


def test_long_messages_both_ways(ends: Ends) -> None:
    sent = [bytes(MESSAGE_MAX), b"", bytes(MESSAGE_MAX - 1), b"x"]
    for message in sent:
        ends.to_server += b"".join(ends.client.down(message))
        ends.to_client += b"".join(ends.server.down(message))
    assert ends.turn() == (sent, sent)


@pytest.mark.parametrize("side", ["client", "server"])
def test_streams_that_do_not_end(ends: Ends, side: str) -> None:
    """Many of them, each within what one message may have."""
    ends.turn()
    sender, receiver = (ends.client, ends.server) if side == "client" else (ends.server, ends.client)
    h2 = sender._h2

    def attack() -> None:
        for _ in range(40):
            stream = h2.get_next_available_stream_id()
            if side == "client":
                h2.send_headers(stream, sender._headers("POST", "/message"))
            else:
                h2.push_stream(1, stream, sender._headers("GET", "/message"))
                h2.send_headers(stream, [(":status", "200")])
            for _ in range(62):
                h2.send_data(stream, bytes(_PART))
                ends.flush(sender)
                ends.turn()

    with pytest.raises(ChunnelError, match="more than"):
        attack()
    assert sum(map(len, receiver._bodies.values())) <= MESSAGE_MAX + _PART


def test_promises_without_end(ends: Ends) -> None:
    ends.turn()

    def attack() -> None:
        for _ in range(300):
            stream = ends.server._h2.get_next_available_stream_id()
            ends.server._h2.push_stream(1, stream, ends.server._headers("GET", "/message"))
            ends.flush(ends.server)
            ends.turn()

    with pytest.raises(ChunnelError, match="at once"):
        attack()
    assert len(ends.client._bodies) <= 100


def test_requests_without_end(ends: Ends) -> None:
    """From an end that heeds no settings."""
    ends.turn()
    ends.client._h2.remote_settings[3] = 1 << 20
    ends.client._h2.remote_settings.acknowledge()

    def attack() -> None:
        for _ in range(300):
            stream = ends.client._h2.get_next_available_stream_id()
            ends.client._h2.send_headers(stream, ends.client._headers("POST", "/message"))
            ends.flush(ends.client)
            ends.turn()

    with pytest.raises(ChunnelError, match="inbound streams"):
        attack()
    assert len(ends.server._bodies) <= 100
