"""What an endpoint of `bertha_socket.new` offers: its own DAG, what a policy file adds, and what runs in this
process."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import socket
from collections.abc import Callable
from functools import cache

from bertha_socket import keys, policy
from bertha_socket.agent.authors import NOTHING
from bertha_socket.agent.offers import checker, chunnel_rules
from bertha_socket.agent.plans import BOTTOM, make_subject
from bertha_socket.chunnels import ChunnelType, Implementation, all_types
from bertha_socket.dag import Chunnel, Dag, Need, Scope, parse
from bertha_socket.negotiation.offer import Offer, OfferedChunnel, OfferedType, offer_of
from bertha_socket.negotiation.plan import Plan, acceptable

__all__ = ["judge", "offer_for"]


def offer_for(name: str, dag: Dag, side: str, address: tuple[str, int]) -> Offer:
    """The offer of the endpoint `name` as `side` ("client", "server") of a connection to `address`.

    The policy file is the one that applies to this process, as for any program (BERTHA_POLICY, the user's,
    the system's); its rules see the endpoint by its name.  Raises OSError: a DAG or policy without sense.
    """
    own = tuple(c for c in dag.chunnels if c.type not in BOTTOM)
    rule = _rule(name, side, address)
    text = rule.dag if rule is not None else ""
    wanted = parse(text).chunnels if text else ()
    has_key = keys.find() is not None

    def usable(kind: ChunnelType, implementation: Implementation) -> bool:
        if implementation.make is None or (kind.name == "encrypt" and not has_key):
            return False
        return implementation.probe() is None

    chunnels = Dag(_united(own, tuple(c for c in wanted if c.type not in BOTTOM)))
    return _here(offer_of(chunnels, all_types(), chunnel_rules(rule), usable))


def _rule(name: str, side: str, address: tuple[str, int]) -> policy.Rule | None:
    path = policy.find_file(dict(os.environ))
    rules = policy.load(path) if path else policy.EMPTY
    if not rules.rules:
        return None
    exe = os.readlink("/proc/self/exe")
    subject = make_subject(os.path.basename(exe), exe, _arguments(), os.geteuid(), name)
    try:
        where = ipaddress.ip_address(address[0].partition("%")[0] or "0.0.0.0")
    except ValueError:  # a name: what it leads to is asked for in connect(), one by one
        where = ipaddress.ip_address(socket.gethostbyname(address[0]))
    return rules.find(subject, side, "tcp", where, address[1])


@cache
def _arguments() -> tuple[str, ...]:
    with open("/proc/self/cmdline", "rb") as file:
        return tuple(os.fsdecode(word) for word in file.read().split(b"\0")[:-1])


def _united(own: tuple[Chunnel, ...], added: tuple[Chunnel, ...]) -> tuple[Chunnel, ...]:
    """The program's chunnels, and below them those that its policy adds.  Of one type the program's arguments
    and the stronger need count."""
    found = list(own)
    types = [c.type for c in own]
    for i, chunnel in enumerate(added):
        if chunnel.type not in types:
            later = {c.type for c in added[i + 1 :]}
            at = next((k for k, c in enumerate(found) if c.type in later), len(found))
            found.insert(at, chunnel)
        elif chunnel.need is Need.REQUIRE:
            found = [
                dataclasses.replace(c, need=Need.REQUIRE) if c.type == chunnel.type and _wanted(c) else c
                for c in found
            ]
        elif not _wanted(chunnel):
            found.append(chunnel)
    return tuple(found)


def _wanted(chunnel: Chunnel) -> bool:
    return chunnel.need in (Need.REQUIRE, Need.PREFER)


def _here(offer: Offer) -> Offer:
    """The same, with all that runs in a process of ours running in this one."""

    def moved(entry: OfferedType | OfferedChunnel) -> OfferedType | OfferedChunnel:
        near = Scope.APPLICATION.value
        here = tuple(dataclasses.replace(i, where=near) for i in entry.implementations)
        return dataclasses.replace(entry, implementations=here)

    chunnels = tuple(c for c in map(moved, offer.chunnels) if isinstance(c, OfferedChunnel))
    able = tuple(t for t in map(moved, offer.able) if isinstance(t, OfferedType))
    return dataclasses.replace(offer, chunnels=chunnels, able=able)


def judge(offer: Offer) -> Callable[[bytes], str | None]:
    """Whether a plan that a client shows may run at a listener with that offer: None, or one line why not."""
    check = checker(NOTHING)

    def why_not(data: bytes) -> str | None:
        try:
            problem = acceptable(Plan.decode(data), offer, "server", check)
        except OSError as error:
            return error.strerror or str(error)
        return None if problem is None else str(problem)

    return why_not
