"""`branch` conforms, and sends each message where its expression says."""

from __future__ import annotations

from typing import Any

import pytest

from bertha_socket.chunnels import ChunnelArgumentError, ChunnelError, Interface, get
from bertha_socket.dag import Dag, parse, wrap
from bertha_socket.expressions import parse_expression
from bertha_socket.testing import CHECKS, Duplex, check_chunnel, pair_of

BY = parse_expression("payload[0] % 2 if len(payload) else 0")


def choices(*texts: str) -> list[Dag]:
    return [wrap(text) for text in texts]


TAGGED = {"by": BY, "choices": choices("compress()", 'frame() |> compress(algorithm="lz4")')}
PLAIN = {"by": BY, "choices": choices('count(name="even")', 'count(name="odd")')}
SLOW = {"by": BY, "choices": choices("count()", "limit(rate=100000) |> compress()")}


class _Messages:
    """`branch` between messages above and below."""

    def __init__(self, args: dict[str, Any], lower: Interface) -> None:
        self._pair = pair_of("branch", **args)
        self.upper, self.lower = Interface.MESSAGES, lower

    def __call__(self) -> Any:
        return self._pair()


@pytest.mark.parametrize("check", [c.__name__ for c in CHECKS])
@pytest.mark.parametrize(
    ("args", "lower"),
    [(TAGGED, Interface.STREAM), (TAGGED, Interface.MESSAGES), (PLAIN, Interface.MESSAGES)],
    ids=["tagged-stream", "tagged-messages", "plain-messages"],
)
def test_conforms(args: dict[str, Any], lower: Interface, check: str) -> None:
    make_pair = _Messages(args, lower)
    if args is TAGGED:
        make_pair.upper = Interface.STREAM  # a choice of compress cuts messages up
        if check == "order":
            return  # two choices, two orders: nothing is lost, see below
    assert check_chunnel(make_pair, only=[check]) == [check]


def test_wires() -> None:
    assert pair_of("branch", **PLAIN).wire == "none"
    assert pair_of("branch", **TAGGED).wire == "branch/1"


def test_each_message_takes_its_choice() -> None:
    duplex = Duplex(_Messages(PLAIN, Interface.MESSAGES), Interface.MESSAGES)
    duplex.send_all("client", [b"\x00a", b"\x01b", b"\x02c", b"\x03d", b"\x05e"])
    duplex.settle()
    counts = duplex.ends["client"].pipes[0].context.counts
    assert (counts["even.sent"], counts["odd.sent"]) == (2, 3)
    assert duplex.got["server"] == [b"\x00a", b"\x01b", b"\x02c", b"\x03d", b"\x05e"]
    assert duplex.ends["server"].pipes[0].context.counts["odd.received"] == 3


def test_nothing_is_lost_where_choices_take_their_time() -> None:
    make_pair = _Messages(SLOW, Interface.STREAM)
    duplex = Duplex(make_pair, Interface.STREAM, seed=3)
    sent = [bytes([i]) * 3000 for i in range(60)]
    duplex.send_all("client", sent)
    for side in ("client", "server"):
        duplex.end(side)
    duplex.run(lambda: all(duplex.ended.values()))
    got = duplex.got["server"]
    assert sorted(got) == sorted(sent)
    assert [m for m in got if m[0] % 2] == [m for m in sent if m[0] % 2], "one choice keeps its order"


def test_a_text_will_do() -> None:
    dag = parse('branch(by="payload[0] % 2", choices=[count(), compress() |> frame()])')
    bound = get("branch").bind(dag.chunnels[0])
    assert bound["by"] == "payload[0] % 2"
    assert pair_of("branch", **bound).wire == "branch/1"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('branch("payload[0]", [])', "1 to 16 DAGs"),
        ('branch("payload[0]", [1])', "1 to 16 DAGs"),
        ('branch("payload[0]", [unheard_of()])', "choice 0: there is no chunnel type 'unheard_of'"),
        ('branch("payload[0]", [count(), compress(level=99)])', "choice 1: compress: level is 99"),
        ('branch("payload[0]", [serialize()])', "choice 0: the program gives a stream"),
        ('branch("open(1)", [count()])', "is not for expressions"),
    ],
)
def test_wrong_arguments(text: str, problem: str) -> None:
    with pytest.raises(ChunnelArgumentError, match="branch: ") as raised:
        get("branch").bind(parse(text).chunnels[0])
    assert problem in str(raised.value)


def test_a_message_without_a_value_ends_the_connection() -> None:
    make_pair = _Messages({"by": "payload[5]", "choices": choices("count()")}, Interface.MESSAGES)
    duplex = Duplex(make_pair, Interface.MESSAGES)
    with pytest.raises(ChunnelError, match="no value for a message"):
        duplex.send("client", b"ab")
