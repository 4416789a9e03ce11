"""From two processes' policies to the plan that goes over the wire."""

from __future__ import annotations

import ipaddress
import os
import pwd
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Final

from bertha_socket._bottom import upper
from bertha_socket.agent import addresses, messages
from bertha_socket.agent.messages import Claimant, DagNeed, Proof, WirePlan
from bertha_socket.agent.model import Listener, Process, Refused
from bertha_socket.agent.sockets import Listening
from bertha_socket.dag import Dag, Need, parse
from bertha_socket.negotiation.offer import Offer
from bertha_socket.negotiation.pick import (
    IMPLEMENTATIONS,
    LOCAL,
    Cause,
    Refusal,
    Wishes,
    allowed,
    least,
    names,
    pick,
)
from bertha_socket.policy import Policy, Rule, Subject
from bertha_socket.reasons import Reason as Why

_BITS: Final = {"shm": messages.IMPL_SHM, "unix": messages.IMPL_UNIX, "tcp": messages.IMPL_TCP}
_NAMES: Final = {bit: name for name, bit in _BITS.items()}
_WHY: Final = {
    Cause.NONE: Why.NONE,
    Cause.POLICY: Why.POLICY,
    Cause.SHM_PROHIBITED: Why.SHM_PROHIBITED,
    Cause.OTHER_USER: Why.OTHER_USER,
    Cause.NO_MEMORY: Why.NO_MEMORY,
}
#: The kernel's overflowuid(5).
_NOBODY: Final = 65534
_user_names: dict[int, str] = {}


def implementation_name(bit: int) -> str:
    """`shm`, `unix` or `tcp`."""
    return _NAMES[bit]


def user_name(uid: int) -> str:
    """The user's name, or its number where it has none."""
    if uid not in _user_names:
        try:
            _user_names[uid] = pwd.getpwuid(uid).pw_name
        except KeyError:
            _user_names[uid] = str(uid)
    return _user_names[uid]


def make_subject(program: str, exe: str, argv: tuple[str, ...], uid: int, name: str) -> Subject:
    """A process as rules see it."""
    return Subject(program or os.path.basename(exe), exe, argv, user_name(uid), uid, name)


def wishes(policy: Policy, subject: Subject, side: str, addr: bytes, port: int, proto: str = "tcp") -> Wishes:
    """What `policy` says about that end of a connection to `addr`, or of datagrams sent there."""
    if not policy.rules:
        return Wishes()
    return policy.wishes(subject, side, proto, ipaddress.ip_address(addresses.to_text(addr)), port)


def wire_bound(spin_us: int | None) -> int:
    """A bound on spinning as messages and claims have it."""
    return messages.UINT32_MAX if spin_us is None else spin_us


def spin_bound(listener: Listener, places: Iterable[bytes]) -> int | None:
    """The most that the policy lets a listener's processes spin for connections with chunnels, under any of
    these addresses: they do not know yet what comes by which."""
    where = listener.where
    return least(
        *(
            wishes(listener.policy, listener.subject, "server", addr, where.port, where.proto).spin_us
            for addr in places
        )
    )


def offered(policy: Policy, subject: Subject, addr: bytes, port: int, proto: str = "tcp") -> int:
    """The implementations that a listener's policy leaves under one address, as bits; 0: the kernel's only.

    Datagrams pass by shared memory or by the kernel."""
    left = allowed(wishes(policy, subject, "server", addr, port, proto))
    if proto == "udp" and "shm" not in left:
        return 0
    if not any(i in LOCAL for i in left):
        return 0
    return sum(_BITS[i] for i in left)


def rule_of(
    policy: Policy, subject: Subject, side: str, addr: bytes, port: int, proto: str = "tcp"
) -> Rule | None:
    """The rule about that end of a connection to `addr`, or of datagrams sent there."""
    if not policy.rules:
        return None
    return policy.find(subject, side, proto, ipaddress.ip_address(addresses.to_text(addr)), port)


def dag_of(
    policy: Policy, subject: Subject, side: str, addr: bytes, port: int, proto: str = "tcp"
) -> Dag | None:
    """The DAG that `policy` gives to that end of a connection to `addr`; None: none."""
    rule = rule_of(policy, subject, side, addr, port, proto)
    return _parsed(rule.dag) if rule is not None else None


@lru_cache(maxsize=256)
def _parsed(dag: object) -> Dag | None:
    if isinstance(dag, str):
        return parse(dag) if dag else None
    return dag if isinstance(dag, Dag) else None


def wants_chunnels(policy: Policy, subject: Subject, addr: bytes, where: Listening) -> bool:
    """Whether a listener's policy gives its connections under that address chunnels."""
    return need_of(dag_of(policy, subject, "server", addr, where.port, where.proto)) != DagNeed.NONE


def need_of(dag: Dag | None) -> DagNeed:
    """What a listener with that DAG does with clients that know of no chunnels."""
    wanted = {c.need for c in upper(dag)} if dag is not None else set()
    if Need.REQUIRE in wanted:
        return DagNeed.REQUIRED
    return DagNeed.MAYBE if Need.PREFER in wanted else DagNeed.NONE


def need_of_offer(offer: Offer) -> DagNeed:
    """The same for an application that runs its chunnels itself: a client may always bring some."""
    required = any(c.need is Need.REQUIRE for c in offer.chunnels)
    return DagNeed.REQUIRED if required else DagNeed.MAYBE


def has_dags(policy: Policy, side: str, proto: str) -> bool:
    """Whether a rule may give chunnels to somebody's connections (or datagrams) on that side."""
    return any(
        rule.side in (side, "any")
        and rule.proto in (proto, "any")
        and need_of(_parsed(rule.dag)) != DagNeed.NONE
        for rule in policy.rules
    )


def listed(policy: Policy, subject: Subject, addr: bytes, where: Listening) -> bool:
    """Whether a listener under one address has anything to negotiate."""
    local = bool(offered(policy, subject, addr, where.port, where.proto))
    return local or wants_chunnels(policy, subject, addr, where)


def refusal(policy: Policy, subject: Subject, addr: bytes, port: int, proto: str) -> Why:
    """The status for a listener whose policy leaves the kernel's carrying only."""
    prohibited = "shm" in wishes(policy, subject, "server", addr, port, proto).prohibit
    return Why.SHM_PROHIBITED if prohibited else Why.POLICY


def trusts(
    policy: Policy, subject: Subject, side: str, addr: bytes, port: int, uid: int, proto: str = "tcp"
) -> bool:
    """Whether `policy` itself, for that end of a connection to `addr`, names that user."""
    return names(wishes(policy, subject, side, addr, port, proto), (user_name(uid), str(uid)))


@lru_cache(maxsize=1)
def _users() -> tuple[int, bool]:
    """The user namespace that we are in, by its inode (0: not known), and whether it has all users."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            rows = [line.split() for line in file]
        return os.stat("/proc/self/ns/user").st_ino, rows == [["0", "0", str(messages.UINT32_MAX)]]
    except (OSError, ValueError):
        return 0, False


def claimant(uid: int, listener_uid: int, *, elsewhere: bool) -> Claimant:
    """What servers are to make of the claims of a client of `uid`.  `elsewhere`: it is in another network
    namespace than the listener; then the listener's policy names it (agree)."""
    users, everybody = _users()
    if uid == _NOBODY and not everybody:  # which all have who are not of our user namespace
        users = 0
    if uid == listener_uid:
        return Claimant(users, uid, Proof.NONE)
    return Claimant(users, uid, Proof.ELSEWHERE if elsewhere else Proof.NEEDED)


def agree(
    client: Process,
    server: Subject,
    server_policy: Policy,
    server_uid: int,
    addr: bytes,
    port: int,
    available: Collection[str] = IMPLEMENTATIONS,
    proto: str = "tcp",
    *,
    elsewhere: bool = False,
) -> WirePlan:
    """The plan for `client` at a listener that `server` runs, of what is `available` to both.
    `elsewhere`: they are in two network namespaces.

    Raises Refused."""
    if client.policy_error is not None:
        raise Refused(Why.POLICY_UNREAD)
    uid = client.peer.uid
    picked = pick(
        wishes(client.policy, client.subject, "client", addr, port, proto),
        wishes(server_policy, server, "server", addr, port, proto),
        same_user=uid == server_uid,
        client_user=(user_name(uid), str(uid)),
        server_user=(user_name(server_uid), str(server_uid)),
        # Whose a datagram is, nobody proves: a claim is believed by what comes next from its address.  So
        # users who differ have to trust each other (decision 0021).  And who makes a namespace gives it any
        # address, also one that the client reaches on another host.
        system_agent=os.geteuid() == 0 and proto != "udp" and not elsewhere,
        available=available,
    )
    if isinstance(picked, Refusal):
        raise Refused(_WHY[picked.cause])
    if proto == "udp" and picked.implementation != "shm":
        raise Refused(_WHY[picked.cause] or Why.POLICY)
    return WirePlan(
        _BITS[picked.implementation],
        wire_bound(picked.spin_us),
        picked.ring_size or 0,
        _WHY[picked.cause],
    )
