"""Which implementation of local_or_remote carries the connections of one client process to one listener.

A pure function of what both ends want and what is there.  An implementation that either end prohibits, or
that is missing where an end requires others, is out.  What is left is ordered by the client's wishes, then
the server's, then by speed; the first is the plan.  `tcp` is plain TCP, for which nothing need be set up:
to pick it is a refusal with its cause.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Final, NamedTuple

#: Fastest first.
IMPLEMENTATIONS: Final = ("shm", "unix", "tcp")
LOCAL: Final = ("shm", "unix")
#: In allow_users: everybody.
ANYBODY: Final = "*"


class Cause(Enum):
    """Why a plan is not the best, or why there is none."""

    NONE = "none"
    POLICY = "policy"
    SHM_PROHIBITED = "shm prohibited"
    OTHER_USER = "other user"
    NO_MEMORY = "no memory"


class Wishes(NamedTuple):
    """What a policy's rule says about one end's connections."""

    require: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    prohibit: tuple[str, ...] = ()
    #: Microseconds an end may spin; None: not said.
    spin_us: int | None = None
    #: Bytes a ring may grow to, a power of two; None: not said.
    ring_size: int | None = None
    #: Users (names or numbers) with whom memory may be shared, besides the end's own.
    allow_users: tuple[str, ...] = ()
    #: Patterns of chunnels' implementations and the priority to offer them with (negotiation.rules).
    priority: tuple[tuple[str, int], ...] = ()


class Plan(NamedTuple):
    """What both ends do."""

    implementation: str
    spin_us: int | None
    ring_size: int | None
    cause: Cause


class Refusal(NamedTuple):
    """The connection is plain TCP."""

    cause: Cause


def allowed(wishes: Wishes) -> tuple[str, ...]:
    """The implementations that one end's wishes leave, fastest first."""
    required = [i for i in wishes.require if i in IMPLEMENTATIONS]  # others are about other chunnels
    return tuple(i for i in IMPLEMENTATIONS if i not in wishes.prohibit and (not required or i in required))


def _rank(wishes: Wishes, implementation: str) -> int:
    if implementation in wishes.prefer:
        return wishes.prefer.index(implementation)
    middle = max(len(IMPLEMENTATIONS), len(wishes.prefer))
    if implementation in wishes.avoid:
        return middle + 1 + wishes.avoid.index(implementation)
    return middle


def least(*bounds: int | None) -> int | None:
    """The smallest of the limits that are given; None: none is."""
    return min((n for n in bounds if n is not None), default=None)


def names(wishes: Wishes, other: Collection[str]) -> bool:
    """Whether that end's policy itself allows a user who goes by the name and number `other`."""
    return ANYBODY in wishes.allow_users or any(u in wishes.allow_users for u in other)


def _may_share(wishes: Wishes, other: Collection[str], system_agent: bool) -> bool:
    return names(wishes, other) if wishes.allow_users else system_agent


def pick(
    client: Wishes,
    server: Wishes,
    *,
    same_user: bool,
    client_user: Collection[str] = (),
    server_user: Collection[str] = (),
    system_agent: bool = False,
    available: Collection[str] = IMPLEMENTATIONS,
) -> Plan | Refusal:
    """The plan for one client process and one listener.

    `client_user` and `server_user` are the names and numbers that each end's user goes by.  Users who differ
    share memory only if neither end's policy leaves the other out of its allow_users, and where a policy does
    not say, only through a system agent (one that root runs) that can tell whom a connection reaches.
    `available` is what both ends can do: shared memory is wanting where `shm` is not among it.
    """
    left = [i for i in allowed(client) if i in allowed(server) and (i in available or i == "tcp")]
    local = [i for i in left if i in LOCAL]
    if "shm" in client.prohibit or "shm" in server.prohibit:
        lost_shm = Cause.SHM_PROHIBITED
    elif "shm" in allowed(client) and "shm" in allowed(server) and "shm" not in available:
        lost_shm = Cause.NO_MEMORY
    else:
        lost_shm = Cause.POLICY
    if not local:
        return Refusal(lost_shm)
    best = min(left, key=lambda i: (_rank(client, i), _rank(server, i), IMPLEMENTATIONS.index(i)))
    if best == "tcp":
        return Refusal(Cause.POLICY)
    # Every local implementation meets in shared memory, so this decides about all of them.
    if not same_user and not (
        _may_share(client, server_user, system_agent) and _may_share(server, client_user, system_agent)
    ):
        return Refusal(Cause.OTHER_USER)
    cause = Cause.NONE
    asked = any("shm" in (*w.require, *w.prefer) for w in (client, server))
    if best == "shm" and asked:  # not just the shim's own preference, which it may think better of
        cause = Cause.POLICY
    if best != "shm":
        cause = Cause.POLICY if "shm" in left else lost_shm
    return Plan(best, least(client.spin_us, server.spin_us), least(client.ring_size, server.ring_size), cause)
