"""What two ends would agree on, for `bertha explain`: the agent's own offers, and its own choice.

Both ends are taken to have what this host has: the key, the libraries, the chunnel types.
"""

from __future__ import annotations

import errno
import os
import selectors
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from bertha_socket import _settings, keys, policy
from bertha_socket.agent import addresses, operator
from bertha_socket.agent.authors import NOTHING, Authors, Brought
from bertha_socket.agent.errands import Errands
from bertha_socket.agent.offers import Choice, Offers, Who, carrier_of_datagrams
from bertha_socket.agent.secrets import Secrets
from bertha_socket.agent.sockets import Peer
from bertha_socket.chunnels import ChunnelType, get
from bertha_socket.chunnels._interfaces import misfit, misfit_over_udp
from bertha_socket.negotiation.plan import Plan, PlannedChunnel, Refusal

__all__ = ["brought_by", "key_of", "negotiated"]

#: More than an agent gives them: here nobody waits for a connection.
_LOOK_SECONDS: Final = 20.0


class _Key(Secrets):
    """The secrets of an agent that may be another user's, of whose key we know what it says."""

    def __init__(self, why_none: str | None) -> None:
        super().__init__()
        self._why_none = why_none

    def cluster_key(self) -> bytes | None:
        if self._why_none == keys.NO_KEY:
            return None
        if self._why_none is not None:
            raise keys.KeyFileError(errno.EINVAL, self._why_none)
        return bytes(keys.KEY_SIZE)  # it is only asked whether there is one


def key_of(status: Mapping[str, Any] | None) -> str | None:
    """Why the agent that would decide has no cluster key; None: it has one.

    `status`: of an agent that is another user's and knows better than our files; None: ours would decide.
    """
    if status is not None:
        agent = status.get("agent")
        fact = agent.get("cluster_key") if isinstance(agent, dict) else None
        if not isinstance(fact, str):
            return keys.NO_KEY
        return None if " " not in fact else fact  # an id, or what is wrong
    try:
        return keys.NO_KEY if keys.find() is None else None
    except keys.KeyFileError as error:
        return error.strerror or str(error)


def brought_by(rules: policy.Policy) -> Brought:
    """The policy file's own chunnels, looked at in a child as the agent does it."""
    if not rules.sources:
        return NOTHING
    why = _settings.why_not_ours(rules.path)
    if why is not None:  # an agent runs such code with its owner's rights; we are somebody else
        return Brought((), tuple((name, f"its code is not looked at: {why}") for name in rules.sources))
    found: list[Brought] = []
    peer = Peer(os.getpid(), os.geteuid(), os.getegid())
    with selectors.DefaultSelector() as selector:
        errands = Errands(selector)
        Authors(errands, _LOOK_SECONDS).look(peer, tuple(os.getgroups()), rules.sources, found.append)
        while not found:
            until = errands.deadline()
            for key, _ in selector.select(None if until is None else max(0.0, until - time.monotonic())):
                key.data()
            errands.tick(time.monotonic())
        errands.close()
    return found[0]


def negotiated(
    rules: policy.Policy,
    ends: Sequence[policy.Subject],
    address: policy.Address,
    port: int,
    proto: str,
    why_no_key: str | None,
    brought: Brought = NOTHING,
) -> dict[str, Any]:
    """What a client and a server (`ends`) would have between them, as `--json` prints it.

    Raises OSError: the operator's function cannot be loaded.
    """
    ours = bool(rules.path) and _settings.why_not_ours(rules.path) is None
    choose = os.environ.get("BERTHA_CHOICE") or (rules.settings.choose if ours else None)
    offers = Offers(_Key(why_no_key), operator.load(choose) if choose else None)
    addr = addresses.from_text(str(address))
    made = []
    for side, subject in zip(("client", "server"), ends, strict=True):
        who = Who(rules, subject, subject.uid, brought)
        try:
            made.append(offers.of_end(who, side, addr, port, proto))
        except OSError as error:
            return _refused(Refusal(f"the {side}'s DAG", error.strerror or str(error)))
    found = offers.decide(made[0], made[1])
    if isinstance(found, Refusal):
        return _refused(found)
    if proto == "udp":
        plan = found.plan
        at_client = carrier_of_datagrams(plan, made[0], "client")
        found = Choice(plan, at_client, carrier_of_datagrams(plan, made[1], "server"))
    why = _unfit(found.plan, proto, brought)
    return _agreed(found) if why is None else _refused(Refusal("the DAG", why))


def _unfit(plan: Plan, proto: str, brought: Brought) -> str | None:
    """Why a carrier could not put these chunnels together."""
    own = {t.name: t for t in brought.types}
    types: list[ChunnelType] = [own[c.type] if c.type in own else get(c.type) for c in plan.chunnels]
    return misfit_over_udp(types) if proto == "udp" else misfit(types)


def _refused(why: Refusal) -> dict[str, Any]:
    refusal = {"chunnel": why.chunnel, "why": why.why, "client": why.client, "server": why.server}
    return {
        "verdict": "refused",
        "chunnels": [],
        "omitted": [],
        "carriers": None,
        "refusal": {**refusal, "text": str(why)},
    }


def _agreed(choice: Choice) -> dict[str, Any]:
    plan = choice.plan
    carriers = {"client": choice.client.name.lower(), "server": choice.server.name.lower()}
    return {
        "verdict": "plan" if plan.chunnels else "plain",
        "chunnels": [_planned(c) for c in plan.chunnels],
        "omitted": [{"type": o.type, "why": o.why} for o in plan.omitted],
        "carriers": carriers if plan.chunnels else None,
        "refusal": None,
    }


def _planned(chunnel: PlannedChunnel) -> dict[str, Any]:
    return {
        "type": chunnel.type,
        "arguments": {name: str(value) for name, value in chunnel.args},
        "wire": chunnel.wire,
        "client": chunnel.client,
        "server": chunnel.server,
        "client_where": chunnel.client_where,
        "server_where": chunnel.server_where,
        "inner": [_planned(c) for c in chunnel.inner if c is not None],
    }
