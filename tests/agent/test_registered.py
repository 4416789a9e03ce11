"""Chunnels that a program has registered itself (BRING): its agent offers them, as it does a [[chunnel]]."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bertha_socket.agent.messages import CarrierKind, DagNeed, Op, Verdict
from bertha_socket.agent.offers import REMEDY
from tests.agent.conftest import Agent
from tests.agent.shim import Hung, Shim, claims_need, listen
from tests.agent.test_chunnels import LOCAL, client_rule, server_rule, write_policy

_TURN = """
import os
from bertha_socket.chunnels import Pipe

class Turn(Pipe):
    "Turned round."
    wire = "turn/{wire}"

with open({told!r}, "a") as file:
    file.write(f"{{os.geteuid()}}\\n")
"""


def turn(room: Path, name: str = "theirs", wire: int = 1) -> str:
    """A class of the name `turn`, and in `room`/told who has imported it."""
    told = room / "told"
    told.touch()
    told.chmod(0o666)
    path = room / f"{name}.py"
    path.write_text(_TURN.format(wire=wire, told=str(told)))
    path.chmod(0o644)
    return f"{path}:Turn"


def bring(shim: Shim, **sources: str) -> None:
    body = "".join(f"{name}\0{source}\0" for name, source in sources.items()).encode()
    reply = shim.ask(Op.BRING, body)
    assert (reply.status, reply.body, reply.fds) == (0, b"", [])


@pytest.mark.parametrize("late", [False, True])
def test_a_rule_may_name_it(agent: Agent, room: Path, late: bool) -> None:
    """Both ends have registered it; the server before it listens, or afterwards."""
    policy = write_policy(room, "server.toml", server_rule("turn()"))
    with agent.shim(policy=policy) as server, agent.shim() as client, listen() as sock:
        if not late:
            bring(server, turn=turn(room))
        _, need, claims = server.listen_with(sock)
        assert need == DagNeed.REQUIRED
        port = sock.getsockname()[1]
        found = client.negotiate(LOCAL, port)
        assert found.verdict == Verdict.REFUSED and "no implementation" in found.detail
        assert REMEDY in found.detail
        bring(client, turn=turn(room))
        if late:
            bring(server, turn=turn(room))
        found = client.negotiate(LOCAL, port, fresh=True)
        assert found.verdict == Verdict.PLAN and found.types() == ["turn"], found
        assert found.carrier == CarrierKind.AUTHORS
        assert claims_need(claims) == (DagNeed.REQUIRED, CarrierKind.AUTHORS)
        os.close(claims)


def test_the_policys_class_counts_and_others_of_ours_too(agent: Agent, room: Path) -> None:
    """Of one name. What a program calls `compress` is not what the other end has by that name."""
    policy = Path(write_policy(room, "server.toml", server_rule("compress() |> turn()")))
    policy.write_text(f'{policy.read_text()}[[chunnel]]\nname = "turn"\nsource = "{turn(room)}"\n')
    with agent.shim(policy=str(policy)) as server, agent.shim() as client, listen() as sock:
        bring(server, turn=turn(room, "other", 2), compress=turn(room, "more", 3))
        _, _, claims = server.listen_with(sock)
        os.close(claims)
        bring(client, turn=turn(room))
        found = client.negotiate(LOCAL, sock.getsockname()[1])
        assert found.verdict == Verdict.PLAN and found.types() == ["compress", "turn"], found


def test_what_is_registered_last_counts(agent: Agent, room: Path) -> None:
    """All are told of each time, so that one can be taken back."""
    policy = write_policy(room, "server.toml", server_rule("turn()"))
    with agent.shim(policy=policy) as server, agent.shim() as client, listen() as sock:
        for shim in (server, client):
            bring(shim, turn=turn(room))
        _, _, claims = server.listen_with(sock)
        os.close(claims)
        port = sock.getsockname()[1]
        assert client.negotiate(LOCAL, port).verdict == Verdict.PLAN
        bring(server)
        assert client.negotiate(LOCAL, port, fresh=True).verdict == Verdict.REFUSED


def test_one_that_cannot_be_imported(agent: Agent, room: Path) -> None:
    """It is as if it were not there, and the reason names the remedy."""
    policy = write_policy(room, "server.toml", server_rule("turn()"))
    with agent.shim(policy=policy) as server, agent.shim() as client, listen() as sock:
        bring(server, turn="not_there:Turn")
        _, _, claims = server.listen_with(sock)
        os.close(claims)
        found = client.negotiate(LOCAL, sock.getsockname()[1])
        assert found.verdict == Verdict.REFUSED
        said = f"chunnel turn: {REMEDY}: not_there:Turn: ModuleNotFoundError: No module"
        assert said in found.detail, found


def test_it_is_imported_as_the_programs_user(agent: Agent, room: Path, other_uid: int) -> None:
    policy = write_policy(room, "client.toml", client_rule("turn()"))
    with agent.shim(uid=other_uid, policy=policy) as shim:
        bring(shim, turn=turn(room))
    assert (room / "told").read_text().split() == [str(other_uid)]


def test_nobody_brings_for_somebody_else(agent: Agent, room: Path) -> None:
    """It is for the connection that says it, and what comes before a HELLO is nobody's."""
    policy = write_policy(room, "server.toml", server_rule("turn()"))
    with Shim(agent.path) as stranger, pytest.raises(Hung):
        stranger.ask(Op.BRING, b"turn\0/a.py:Turn\0")
    with agent.shim(policy=policy) as server, agent.shim() as other, agent.shim() as client, listen() as sock:
        for shim in (other, client):
            bring(shim, turn=turn(room))
        _, _, claims = server.listen_with(sock)
        os.close(claims)
        assert client.negotiate(LOCAL, sock.getsockname()[1]).verdict == Verdict.REFUSED


def test_who_leaves_while_it_is_looked_at(agent: Agent, room: Path) -> None:
    with agent.shim() as shim:
        shim.send(Op.BRING, f"turn\0{turn(room)}\0".encode())
    with agent.shim() as shim:
        bring(shim, turn=turn(room))
    assert agent.status()["agent"]["faults"] == 0
