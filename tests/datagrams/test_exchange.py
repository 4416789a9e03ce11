"""Two carriers and one pair of addresses, without sockets: on a network that loses, doubles and reorders."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertha_socket import keys
from bertha_socket.carrier import envelope
from bertha_socket.carrier.envelope import Envelope, Kind
from bertha_socket.carrier.exchange import (
    CLIENT_IDLE,
    HELLO_SECONDS,
    SERVER_IDLE,
    Exchange,
    Step,
    datagram_recipe,
)
from bertha_socket.chunnels import Context, reliable
from bertha_socket.chunnels._reliable_native import held_by_all
from tests.carrier.host import chunnel, plan_of

KEY = bytes(range(32))
RELIABLE = plan_of(chunnel("reliable", "brel/1"))


class Wire:
    """A client's and a server's exchange; time passes only here."""

    def __init__(
        self,
        plan: bytes = RELIABLE,
        client_key: bytes | None = KEY,
        server_key: bytes | None = KEY,
        *,
        loss: float = 0.0,
        seed: int = 0,
        verdict: str | None = None,
        message_max: int | None = None,
    ) -> None:
        """`message_max`: the server's, as in a carrier."""
        self.message_max = message_max
        self.now = 1000.0
        self.random = random.Random(seed)
        self.loss = loss
        self.verdict = verdict
        self.server_key = server_key
        self.plan = plan
        self.client = Exchange(self._context("client", client_key), client_key, plan)
        self.server: Exchange | None = None
        self.flying: list[tuple[float, str, bytes]] = []
        self.seen: list[bytes] = []
        self.got: dict[str, list[bytes]] = {"client": [], "server": []}
        self.client.start()

    def _context(self, side: str, key: bytes | None) -> Context:
        material = keys.material(key) if key is not None else None
        most = self.message_max if side == "server" else None
        return Context(side, material, clock=lambda: self.now, message_max=most, held=held_by_all(1 << 20))

    def _collect(self) -> None:
        for side, end in (("client", self.client), ("server", self.server)):
            if end is None:
                continue
            self.got[side] += end.to_program
            end.to_program.clear()
            for data in end.to_network:
                self.seen.append(data)
                for _ in range(1 + (self.loss > 0 and self.random.random() < 0.1)):
                    if self.random.random() >= self.loss:
                        delay = self.random.random() * 0.01
                        self.flying.append((self.now + delay, side, data))
            end.to_network.clear()

    def _arrive(self, side: str, data: bytes) -> None:
        came = envelope.opened(data)
        assert came is not None
        if side == "server":
            self.client.network(came)
            return
        if self.server is None:
            if came.kind is not Kind.HELLO:
                self.client.to_network.clear()
                return
            plan, why = envelope.read_hello(came, self.server_key)
            if plan is None:
                self.flying.append((self.now, "server", envelope.refuse(came.session, why or "?")))
                return
            context = self._context("server", self.server_key)
            self.server = Exchange(context, self.server_key, plan, came.session)
            self.server.judged(self.verdict)
            return
        self.server.network(came)

    def run(self, seconds: float) -> None:
        """Lets that much time pass, event by event."""
        end = self.now + seconds
        while True:
            self._collect()
            times = [at for at, _, _ in self.flying]
            ends = [x for x in (self.client, self.server) if x is not None]
            times += [d for x in ends if (d := x.deadline()) is not None]
            due = min(times, default=end)
            if due >= end:
                self.now = end
                return
            self.now = max(self.now, due)
            ready = [f for f in self.flying if f[0] <= self.now]
            self.flying = [f for f in self.flying if f[0] > self.now]
            for _, side, data in ready:
                self._arrive(side, data)
            for x in (self.client, self.server):
                if x is not None and (d := x.deadline()) is not None and d <= self.now:
                    x.tick(self.now)

    def until(self, side: str, count: int) -> None:
        """Lets time pass until so many have come there."""
        for _ in range(1000):
            if len(self.got[side]) >= count:
                return
            self.run(1)
        raise AssertionError(f"{len(self.got[side])} of {count} have come")


def _messages(count: int) -> list[bytes]:
    return [b"%d:" % i + bytes([i % 256]) * (i * 61 % 3000) for i in range(count)]


@pytest.mark.parametrize("loss", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_once_and_in_order(loss: float, seed: int) -> None:
    wire = Wire(loss=loss, seed=seed)
    sent = _messages(60)
    for message in sent:
        wire.client.program(message)
    wire.until("server", len(sent))
    assert wire.server is not None
    for message in reversed(sent):
        wire.server.program(message)
    wire.until("client", len(sent))
    wire.run(60)
    assert wire.got["server"] == sent
    assert wire.got["client"] == sent[::-1]
    assert wire.client.step is wire.server.step is Step.READY
    assert not wire.client.unsaid


def test_an_accept_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's first data has it said again, and not the next HELLO alone, much later."""
    wire = Wire()
    arrive, lost = wire._arrive, []

    def first_lost(side: str, data: bytes) -> None:
        came = envelope.opened(data)
        if came is not None and came.kind is Kind.ACCEPT and not lost:
            lost.append(came)
        else:
            arrive(side, data)

    monkeypatch.setattr(wire, "_arrive", first_lost)
    wire.run(0.03)
    wire.client.program(b"question")
    wire.run(0.03)
    assert lost and wire.server is not None and wire.got["server"] == [b"question"]
    assert wire.client.step is Step.PENDING
    hellos = len([d for d in wire.seen if (e := envelope.opened(d)) and e.kind is Kind.HELLO])
    for _ in range(20):
        wire.server.program(b"answer")
    wire.run(0.1)
    assert wire.got["client"] == [b"answer"] * 20
    assert wire.client.step is Step.READY
    said = len([d for d in wire.seen if (e := envelope.opened(d)) and e.kind is Kind.HELLO])
    assert 0 < said - hellos < 10, "not for each datagram"


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_encrypted(loss: float) -> None:
    """TLS over a stream of datagrams: boundaries stay, and nothing can be read on the way."""
    plan = plan_of(chunnel("frame", "u32be/1"), chunnel("encrypt", "tls1.3"), chunnel("reliable", "brel/1"))
    wire = Wire(plan, loss=loss, seed=3)
    sent = [b"the secret number %d" % i for i in range(30)]
    for message in sent:
        wire.client.program(message)
    wire.until("server", len(sent))
    assert wire.got["server"] == sent
    assert not any(b"secret" in data for data in wire.seen)
    assert "encrypt" in wire.client.chunnels


@pytest.mark.parametrize("kind", ["native", "python"])
def test_a_message_that_no_program_could_be_given(kind: str) -> None:
    """Ends the connection, where it comes and where the program is one of UDP."""
    wire = Wire(plan_of(chunnel("reliable", "brel/1", kind)), message_max=65507)
    wire.client.program(bytes(65507))
    wire.until("server", 1)
    assert wire.server is not None
    assert wire.got["server"] == [bytes(65507)]
    wire.client.program(bytes(65508))
    wire.run(1)
    assert wire.server.detail.endswith("reliable: a message of more than 65507 bytes came")
    assert wire.server.step is Step.FAILED


@pytest.mark.parametrize("kind", ["native", "python"])
def test_a_long_message_as_a_stream(kind: str) -> None:
    """Chunks of a stream go in pieces, whatever the messages above are: the other end's bound is not met."""
    plan = plan_of(
        chunnel("frame", "u32be/1"), chunnel("encrypt", "tls1.3"), chunnel("reliable", "brel/1", kind)
    )
    wire = Wire(plan, message_max=65507)
    sent = [bytes(3 << 20), b"", bytes(65507)]
    for message in sent:
        wire.client.program(message)
    wire.until("server", len(sent))
    assert wire.got["server"] == sent


@pytest.mark.parametrize("kind", ["native", "python"])
def test_a_long_chunk_of_an_older_end(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends in one piece what a stream gives it."""
    monkeypatch.setattr(reliable, "PIECE", 0)
    plan = plan_of(
        chunnel("frame", "u32be/1"), chunnel("encrypt", "tls1.3"), chunnel("reliable", "brel/1", kind)
    )
    wire = Wire(plan, message_max=65507)
    wire.client.program(bytes(1 << 20))
    wire.until("server", 1)
    assert wire.got["server"] == [bytes(1 << 20)]


@pytest.mark.parametrize(
    ("client", "server", "why"),
    [(KEY, bytes(32), "another cluster key"), (None, KEY, "has no cluster key"), (KEY, None, "has none")],
)
def test_keys_that_differ(client: bytes | None, server: bytes | None, why: str) -> None:
    wire = Wire(client_key=client, server_key=server)
    wire.client.program(b"never to arrive")
    wire.run(HELLO_SECONDS)
    assert wire.client.step is Step.FAILED
    assert wire.client.refused
    assert why in wire.client.detail
    assert not wire.got["server"]


def test_a_plan_that_the_agent_refuses() -> None:
    wire = Wire(verdict="it has gone stale")
    wire.run(1)
    assert wire.client.refused
    assert "it has gone stale" in wire.client.detail


def test_nobody_answers() -> None:
    wire = Wire(loss=1.0)
    wire.client.program(b"anybody?")
    wire.run(HELLO_SECONDS + 1)
    assert wire.client.step is Step.FAILED
    assert not wire.client.refused
    assert "has not answered" in wire.client.detail


def test_an_accept_of_somebody_without_the_key_is_not_believed() -> None:
    wire = Wire(loss=1.0)
    for key in (None, bytes(32)):
        came = envelope.opened(envelope.accept(wire.client.session, RELIABLE, key))
        assert came is not None
        wire.client.network(came)
        assert wire.client.step is Step.PENDING


def test_what_is_silent_is_forgotten_by_the_server() -> None:
    """Later than the client begins anew."""
    wire = Wire()
    wire.client.program(b"hello")
    wire.run(CLIENT_IDLE + 5)
    assert wire.server is not None
    assert wire.server.step is Step.READY
    assert wire.client.silent(wire.now) > CLIENT_IDLE
    wire.run(SERVER_IDLE)
    assert wire.server.step is Step.FAILED
    assert wire.server.detail == ""
    assert wire.client.step is Step.READY


def test_a_server_that_has_forgotten() -> None:
    wire = Wire()
    wire.run(1)
    wire.client.network(Envelope(Kind.UNKNOWN, wire.client.session, b""))
    assert wire.client.step is Step.FAILED
    assert not wire.client.refused, "the plan is still good"


def test_a_plan_that_does_not_fit_datagrams() -> None:
    for plan in (plan_of(chunnel("encrypt", "tls1.3")), b"no plan", plan_of(chunnel("gzip", "gz"))):
        with pytest.raises(OSError):
            datagram_recipe(plan, "server").pipes(Context("server"))


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda b: envelope.MAGIC + b))
def test_any_bytes(data: bytes) -> None:
    """They are an envelope, or nothing; and no body is more than nonsense."""
    came = envelope.opened(data)
    assert came is None or data.startswith(envelope.MAGIC)
    for kind in Kind:
        made = Envelope(kind, 1, data)
        assert envelope.read_hello(made, KEY)[0] is None
        assert not envelope.is_accepted(made, RELIABLE, KEY)
        assert envelope.why_refused(made)


@given(st.lists(st.tuples(st.sampled_from(list(Kind)), st.binary(max_size=60)), max_size=20))
def test_any_datagrams_within_a_session(strangers: Sequence[tuple[Kind, bytes]]) -> None:
    """Whoever can write into a session may end it; it raises nothing, and gives the program nothing."""
    wire = Wire(client_key=None, server_key=None)
    wire.run(1)
    assert wire.server is not None
    for kind, body in strangers:
        wire.client.network(Envelope(kind, wire.client.session, body))
        wire.server.network(Envelope(kind, wire.server.session, body))
    wire.run(1)
    assert not wire.client.traceback
    assert not wire.server.traceback
