"""The carrier in Python and whatever shims, programs, agents and networks say: it serves on, keeps nothing.

One carrier has many programs' connections, and its loop catches nothing: what raises here would end them all.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bertha_socket import _native
from bertha_socket.agent import carriers
from bertha_socket.carrier import ends, envelope, shim
from bertha_socket.carrier.carrier import Carrier
from bertha_socket.carrier.control import Control, Secrets
from bertha_socket.carrier.envelope import Kind
from bertha_socket.carrier.preamble import Reader
from bertha_socket.chunnels import ChunnelError, Context, get
from tests.carrier.host import chunnel, plan_of

PLANS = {
    "none": b"",
    "no msgpack": b"\xc1",
    "deep": b"\x91" * 2000,
    "empty": plan_of(),
    "compress": plan_of(chunnel("compress", "zstd/1", level=3)),
    "reliable": plan_of(chunnel("reliable", "reliable/1")),
    "not here": plan_of(chunnel("nobody", "none")),
}
#: What msgpack knows, in each other, and with what is no good anywhere.
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.binary(max_size=20),
        st.text(max_size=20),
        st.just(msgpack.ExtType(5, b"ext")),
        st.just(msgpack.Timestamp(1)),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


def one_of(named: dict[str, bytes]) -> st.SearchStrategy[bytes]:
    """By their names, so that a failing case can be read."""
    return st.sampled_from(sorted(named)).map(named.__getitem__)


#: Bytes that are no message, or one with something at its end, twice the same name, or no bottom.
RAW = st.one_of(
    st.binary(max_size=200),
    one_of(
        {
            "deep lists": b"\x91" * 5000,
            "deep maps": b"\x81\xa2op" * 2000,
            "a name twice": b"\x82\xa2op\xa4idle\xa2op\xa7verdict",
            "nil as a name": b"\x81\xc0\xc0",
            "a list as a name": b"\x81\x90\xc0",
            "no UTF-8": b"\x81\xa2op\xa1\xff",
            "a map of billions": b"\xdf\xff\xff\xff\xff",
            "a text of gigabytes": b"\xdb\xff\xff\xff\xff",
        }
    ),
)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _nothing_is_kept() -> Iterator[None]:
    ends.core()  # which has a descriptor of its own, once
    gc.collect()  # what earlier tests have left in cycles is not this one's
    before = descriptors()
    yield
    gc.collect()  # what is in cycles has its descriptors closed then
    assert descriptors() == before


_SHIM = {"op": "shim", "uid": os.getuid(), "gid": os.getgid()}


class House:
    """A carrier in this process, with its agent's end of the control socket and one shim's."""

    def __init__(self) -> None:
        self.agent, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.carrier = Carrier(control)
        self.shim, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self.agent, [msgpack.packb(_SHIM)], [theirs.fileno()])
        self.turn()

    def __enter__(self) -> House:
        return self

    def __exit__(self, *_: object) -> None:
        """The programs go, and with them all that there was."""
        self.shim.close()
        self.agent.close()
        for _ in range(50):
            carrier = self.carrier
            if not (
                carrier.control.alive or carrier._shims or carrier._connections or carrier._processes.busy
            ):
                break
            carrier.loop.turn(0.02)
        for datagrams in list(self.carrier._datagrams):
            datagrams._close()  # what it still had to say has its time, which a test has not
        assert not self.carrier._connected
        self.carrier.close()

    def turn(self, times: int = 3) -> None:
        for _ in range(times):
            self.carrier.loop.turn(0.0)

    def serves(self) -> None:
        """Another shim is taken."""
        one, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with one, theirs:
            socket.send_fds(self.agent, [msgpack.packb(_SHIM)], [theirs.fileno()])
            before = len(self.carrier._shims)
            self.turn()
            assert len(self.carrier._shims) == before + 1
        self.turn()


# -- shims ---------------------------------------------------------------------------------------------------

_WORDS = st.integers(0, 3) | st.integers(0, 2**32 - 1)
#: Links, their indices, slots: a carrier in Python has no slot 255.
_FEW = st.sampled_from([0] * 6 + [1, 254, 255, 1023, 1024, 2**32 - 1])


@st.composite
def shim_messages(draw: st.DrawFn) -> bytes:
    """Nearly right, as a rule."""
    kind = draw(st.sampled_from([1, 2, 3, 4, 4, 5, 5, 0xFFFF]))
    magic = draw(st.sampled_from([shim.MAGIC] * 9 + [0]))
    version = draw(st.sampled_from([1] * 9 + [2]))
    if kind == 1:
        made = struct.pack("=IHHII", magic, version, kind, 0, draw(st.sampled_from([0, 1, 4, 2**32 - 1])))
    elif kind == 4:
        made = struct.pack("=IHHII", magic, version, kind, draw(_FEW), draw(_FEW))
    else:
        plan = draw(one_of(PLANS) | st.binary(max_size=40))
        size = draw(st.sampled_from([len(plan)] * 4 + [len(plan) + 1, 0, 2**32 - 1]))
        side, mode = draw(st.sampled_from([(0, 0), (1, 1), (1, 2)]) | st.tuples(_WORDS, _WORDS))
        listener, index = draw(st.integers(0, 2**64 - 1)), draw(st.sampled_from([0, 1, 3, 4, 2**32 - 1]))
        made = struct.pack("=IHHIIQII", magic, version, kind, side, mode, listener, index, size)
        made += (struct.pack("=II", draw(_FEW), draw(_FEW)) if kind == 5 else b"") + plan
    return made[: draw(st.just(len(made)) | st.integers(0, len(made)))]


def _link(index: int, slot_count: int = 0, seals: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW) -> int:
    """A link's memory, as a shim makes it; `slot_count`: what it says instead."""
    header = _native.ffi.new("struct bertha_link_header *")
    _native.lib.agent_link_header(header, 2**64 - 1, index, os.getpid(), 1)
    data = bytearray(_native.ffi.buffer(header))
    if slot_count:
        struct.pack_into("=I", data, 20, slot_count)
    fd = os.memfd_create("link", os.MFD_ALLOW_SEALING)
    os.truncate(fd, header.total_size)
    os.pwrite(fd, data, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def _descriptor(what: str, stack: contextlib.ExitStack) -> int:
    def own(fd: int) -> int:
        stack.callback(os.close, fd)
        return fd

    def kept(*socks: socket.socket) -> int:
        for sock in socks:
            stack.enter_context(sock)
        return socks[0].fileno()

    match what:
        case "memory" | "memory that may shrink":
            flags = os.MFD_ALLOW_SEALING if what == "memory" else 0
            fd = own(os.memfd_create("status", flags))
            os.truncate(fd, 4 * shim.STATUS_SIZE)
            return fd
        case "little":
            return own(os.memfd_create("status"))
        case "link":
            return own(_link(0))
        case "broken link":
            return own(_link(0, slot_count=2**32 - 1))
        case "link that may shrink":
            return own(_link(0, seals=0))
        case "bell":
            return own(os.eventfd(0, os.EFD_NONBLOCK))
        case "null":
            return own(os.open("/dev/null", os.O_RDWR))
        case "pipe":
            ends = os.pipe()
            own(ends[1])
            return own(ends[0])
        case "tcp":
            with socket.create_server(("127.0.0.1", 0)) as listening:
                client = socket.create_connection(listening.getsockname(), 10)
                return kept(client, listening.accept()[0])
        case "listening":
            return kept(socket.create_server(("127.0.0.1", 0)))
        case "unconnected":
            return kept(socket.socket())
        case "udp":
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("127.0.0.1", 0))
            return kept(sock)
        case "netlink":
            return kept(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
        case "stream":
            return kept(*socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
        case _:
            return kept(*socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))


_FDS = st.lists(
    st.sampled_from(
        [
            "memory",
            "memory that may shrink",
            "little",
            "null",
            "pipe",
            "tcp",
            "listening",
            "unconnected",
            "udp",
            "netlink",
            "stream",
            "packets",
            "link",
            "broken link",
            "link that may shrink",
            "bell",
        ]
    ),
    max_size=4,
) | st.sampled_from([["tcp", "stream"], ["udp", "packets"], ["memory"], ["link"], ["tcp", "stream", "bell"]])
_HELLO = struct.pack("=IHHII", shim.MAGIC, 1, 1, 0, 4)


_LINK = struct.pack("=IHHII", shim.MAGIC, 1, 4, 0, 0)


def _by_ring(link: int, slot: int, plan: bytes = b"") -> bytes:
    head = struct.pack("=IHHIIQII", shim.MAGIC, 1, 5, 0, 0, 1, 0, len(plan))
    return head + struct.pack("=II", link, slot) + plan


_OVER_A_LINK = [(_LINK, ["link"]), (_by_ring(0, 0, PLANS["compress"]), ["tcp", "stream", "bell"])]


@settings(max_examples=200, deadline=None)
@example(True, _OVER_A_LINK)
@example(True, [*_OVER_A_LINK, _OVER_A_LINK[1]])  # the same slot twice
@example(True, [_OVER_A_LINK[0], (_by_ring(0, 255), ["tcp", "stream", "bell"])])
@example(True, [_OVER_A_LINK[0], (_by_ring(1, 0), ["tcp", "stream", "bell"])])
@example(True, [_OVER_A_LINK[0], (_by_ring(0, 0), ["tcp", "stream"])])
@example(True, [_OVER_A_LINK[0], (_OVER_A_LINK[1][0], ["tcp", "stream", "null"])])
@given(st.booleans(), st.lists(st.tuples(shim_messages() | st.binary(max_size=60), _FDS), max_size=5))
def test_whatever_a_shim_sends(greets: bool, said: list[tuple[bytes, list[str]]]) -> None:
    if greets:
        said = [(_HELLO, ["memory"]), *said]
    with House() as house, contextlib.ExitStack() as stack:
        for message, kinds in said:
            fds = [_descriptor(kind, stack) for kind in kinds]
            try:
                socket.send_fds(house.shim, [message], fds)
            except BrokenPipeError:
                break
            house.turn()
        house.serves()


# -- the agent -----------------------------------------------------------------------------------------------

_FIELDS = st.dictionaries(
    st.sampled_from(
        ["op", "id", "listener", "material", "key", "sources", "ok", "why", "uid", "gid", "more"]
    ),
    VALUES,
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            RAW | VALUES | _FIELDS,
            st.sampled_from(["", "context", "verdict", "chunnels", "shim", "behind", "x"]),
        ),
        max_size=5,
    )
)
@example([({"id": [1]}, "verdict"), ({"id": {}}, "verdict"), ({"listener": [1]}, "context")])
@example([(b"\x81\x90\xc0", ""), (b"\x91" * 5000, "")])
def test_whatever_an_agent_says(said: list[tuple[Any, str]]) -> None:
    """It is the carrier's own; but a carrier outlives it, and one of another version may come to err."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    shims: list[socket.socket] = []
    answers: list[str | None] = []
    with near, far:
        control = Control(far, lambda sock, user: shims.append(sock))
        control.ask(1, b"plan", "peer", answers.append)
        near.recv(65536)
        for message, op in said:
            if isinstance(message, dict) and op:
                message = {**message, "op": op}
            data = message if isinstance(message, bytes) else msgpack.packb(message)
            socket.send_fds(near, [data or b"\0"], [0, near.fileno()] if op in ("shim", "behind") else [])
            control.receive()
        assert control.alive
        assert isinstance(control.secrets(1, 0), Secrets)
        near.send(msgpack.packb({"op": "verdict", "id": 1, "ok": True}))
        control.receive()
        assert len(answers) == 1, "the question has one answer, whatever came with it"
    for sock in shims:
        sock.close()


# -- datagrams -----------------------------------------------------------------------------------------------

_V4 = bytes(10) + b"\xff\xff"
_PLACES = st.tuples(
    st.sampled_from(
        [_V4 + b"\x7f\0\0\1", _V4 + b"\xff\xff\xff\xff", _V4 + bytes(4), bytes(16), b"\xfe\x80" + bytes(14)]
    )
    | st.binary(min_size=16, max_size=16),
    st.sampled_from([0, 9, 65535]),
    st.integers(0, 2**32 - 1),
)


@st.composite
def program_datagrams(draw: st.DrawFn) -> bytes:
    """Behind a header, as the shim writes it, nearly."""
    addr, port, scope = draw(_PLACES)
    magic, kind = draw(st.sampled_from([0xBD47] * 9 + [0])), draw(st.integers(0, 6))
    value = draw(st.integers(0, 2**64 - 1))
    body = draw(one_of(PLANS) | st.binary(max_size=30))
    made = struct.pack("=HHHHIIQ16s", magic, kind, port, 0, scope, 0, value, addr) + body
    return made[: draw(st.just(len(made)) | st.integers(1, len(made)))]


@st.composite
def network_datagrams(draw: st.DrawFn) -> bytes:
    """Of a carrier, or of nobody."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=40))
    kind, session = draw(st.integers(0, 6)), draw(st.sampled_from([0, 1, 2**64 - 1]))
    fields = draw(st.dictionaries(st.sampled_from(["v", "plan", "mac", "why"]), VALUES))
    body = draw(RAW | one_of({n: msgpack.packb({"v": 1, "plan": p}) for n, p in PLANS.items()}))
    head = envelope.HEAD.pack(envelope.MAGIC, kind, session)
    return (head + (body if draw(st.booleans()) else msgpack.packb({"v": 1, **fields})))[:1500]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([(0, 0), (1, 1), (1, 2)]),
    st.booleans(),
    st.lists(st.tuples(st.booleans(), program_datagrams(), network_datagrams()), max_size=8),
)
@example(
    (0, 0),
    False,
    [(True, struct.pack("=HHHHIIQ16s", 0xBD47, k, 9, 0, 0, 0, 0, bytes(16)) + b"x", b"") for k in (2, 1)],
)
def test_whatever_comes_by_a_carried_udp_socket(
    side: tuple[int, int], six: bool, said: list[tuple[bool, bytes, bytes]]
) -> None:
    """From the program, or from the network."""
    with House() as house, contextlib.ExitStack() as stack:
        socket.send_fds(house.shim, [_HELLO], [_descriptor("memory", stack)])
        udp = stack.enter_context(
            socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
        )
        udp.bind(("::1" if six else "127.0.0.1", 0))
        program, pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stranger = stack.enter_context(socket.socket(udp.family, socket.SOCK_DGRAM))
        with program, pair:
            carry = struct.pack("=IHHIIQII", shim.MAGIC, 1, 3, *side, 7, 0, 0)
            socket.send_fds(house.shim, [carry], [udp.fileno(), pair.fileno()])
            house.turn()
            assert len(house.carrier._datagrams) == 1
            for from_program, given_out, came in said:
                if from_program:
                    program.send(given_out)
                else:
                    stranger.sendto(came, udp.getsockname())
                house.turn()
            assert len(house.carrier._datagrams) == 1
        house.serves()


# -- bytes behind which there is msgpack, and JSON -----------------------------------------------------------


@settings(max_examples=300)
@given(RAW | VALUES.map(msgpack.packb), st.sampled_from(list(Kind)))
def test_bodies(body: bytes, kind: Kind) -> None:
    found = carriers.parse(body)
    assert found is None or isinstance(found["op"], str)
    came = envelope.Envelope(kind, 1, body)
    plan, _ = envelope.read_hello(came, None)
    assert plan is None or isinstance(plan, bytes)
    assert envelope.why_refused(came).isprintable()
    with contextlib.suppress(ChunnelError):
        fields = Reader().feed(b"\xbeBRT" + len(body).to_bytes(4, "big") + body)
        assert fields is None or fields["v"] == 1


def _deep(pair: tuple[bytes, bytes], times: int) -> bytes:
    return pair[0] * times + b"0" + pair[1] * times


JSON = st.one_of(
    one_of(
        {
            "NaN": b"NaN\n",
            "Infinity": b"[Infinity]\n",
            "-Infinity": b"-Infinity\n",
            "a name twice": b'{"a":1,"a":2}\n',
            "a large exponent": b"1e999\n",
            "a long number": b"9" * 5000 + b"\n",
            "half a pair": b'"\\ud800"\n',
            "no UTF-8": b"\xff\xfe\n",
            "nothing": b"\n",
            "deep lists": _deep((b"[", b"]"), 100_000) + b"\n",
            "deep maps": _deep((b'{"a":', b"}"), 50_000) + b"\n",
        }
    ),
    st.recursive(
        st.none() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    ).map(lambda v: json.dumps(v).encode() + b"\n"),
    st.binary(max_size=60),
)
MSGPACK = (
    RAW
    | VALUES.map(msgpack.packb)
    | one_of({"deeper": b"\x91" * 100_000, "ext": b"\xc7\xff\x05", "bytes": b"\xc6\xff\xff\xff\xff"})
)


@pytest.mark.parametrize(("wire", "pieces"), [("json/1", JSON), ("msgpack/1", MSGPACK)])
def test_objects(wire: str, pieces: st.SearchStrategy[bytes]) -> None:
    """Only ChunnelError, at any cut; and what was an object goes down again, or says why it cannot."""

    @settings(max_examples=200, deadline=None)
    @given(st.lists(pieces, max_size=3), st.integers(1, 50))
    def check(said: list[bytes], size: int) -> None:
        kind = get("serialize")
        made: Callable[..., Any] | None = kind.implementations[0].make
        assert made is not None
        pipe = made(kind.bound({}), wire, "server", Context("server"))
        data = b"".join(said)
        part = max(size, len(data) // 50)
        with contextlib.suppress(ChunnelError):
            for at in range(0, len(data), part):
                for value in pipe.up(data[at : at + part])[0]:
                    with contextlib.suppress(ChunnelError):
                        list(pipe.down(value))
            pipe.up_end()
        pipe.close()

    check()


def test_secrets_that_were_told_before_are_known() -> None:
    """The shim's word is read in the same turn as the first of several of the agent's, all of them older."""
    key = b"k" * 32
    with House() as house, contextlib.ExitStack() as stack:
        memory = _descriptor("memory", stack)
        hello = struct.pack("=IHHII", shim.MAGIC, 1, 1, os.getpid(), 4)
        socket.send_fds(house.shim, [hello], [memory])
        house.turn()
        for listener in (5, 6, 7):
            told = {"op": "context", "listener": listener, "material": None, "key": key}
            told["uids"] = [os.getuid()]
            house.agent.send(msgpack.packb(told))
        a, b = socket.socketpair()
        c, d = (stack.enter_context(s) for s in socket.socketpair())
        with a, b:
            carry = struct.pack("=IHHIIQII", shim.MAGIC, 1, 2, 1, 1, 7, 0, 0)
            socket.send_fds(house.shim, [carry], [c.fileno(), a.fileno()])
            house.turn(1)
            (connection,) = house.carrier._connections
            assert connection.session._key == key
        d.close()
