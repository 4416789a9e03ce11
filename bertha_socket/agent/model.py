"""What the agent knows: processes, listeners, links and bells.  Data only; registry.py has the rules."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from bertha_socket.agent import addresses, memory
from bertha_socket.agent.authors import NOTHING, Brought
from bertha_socket.agent.messages import CarrierKind, Claimant, DagNeed, Hello, WirePlan
from bertha_socket.agent.sockets import Listening, Peer
from bertha_socket.agent.spaces import Namespace
from bertha_socket.negotiation.offer import Offer
from bertha_socket.negotiation.plan import LEFT_OUT
from bertha_socket.policy import EMPTY, Policy, Subject
from bertha_socket.reasons import Reason as Why

#: Destinations of which a process's last answer is kept.
_TOLD_MAX: Final = 64


class Refused(Exception):
    """A request that is understood and not granted; `why` is the reply's status."""

    def __init__(self, why: Why) -> None:
        super().__init__(why.name)
        self.why = why


@dataclass(eq=False, slots=True)
class Process:
    """One greeted connection: a process, and everything that ends with it."""

    peer: Peer
    hello: Hello
    subject: Subject
    policy: Policy = EMPTY
    #: Why the policy file is not in force; then nothing is negotiated, for it may have forbidden it.
    policy_error: str | None = None
    #: Where the classes of chunnels are that the program has registered itself, by name.
    registered: Mapping[str, str] = field(default_factory=dict)
    #: The chunnel types that these and its policy bring.
    brought: Brought = NOTHING
    #: What it offers, where it runs its chunnels itself; None: what its policy says.
    offer: Offer | None = None
    table_fd: int = -1
    #: Memory in which carriers say what became of its connections (native/carrier/carrier.h).
    carried_fd: int = -1
    carriers: int = 0
    since: float = 0.0
    listeners: set[Listener] = field(default_factory=set)
    links: dict[tuple[int, int], Link] = field(default_factory=dict)
    served: set[Link] = field(default_factory=set)
    bells: dict[int, int] = field(default_factory=dict)
    #: Why it got no chunnels, by protocol, address and port; the last said comes last.
    told: dict[tuple[str, bytes, int], str] = field(default_factory=dict)

    def note_told(self, place: tuple[str, bytes, int], why: str) -> None:
        """What it has been told now of a destination; "": nothing, or of chunnels that it gets."""
        if self.told.pop(place, "") != why:
            for link in self.links.values():
                if link.place == place:
                    link.tell_left_out(why)
        if why:
            self.told[place] = why
        if len(self.told) > _TOLD_MAX:
            del self.told[next(iter(self.told))]

    @property
    def sources(self) -> Mapping[str, str]:
        """Where the classes of its chunnels are; of one name the policy's counts."""
        return {**self.registered, **self.policy.sources} if self.registered else self.policy.sources


@dataclass(eq=False, slots=True)
class Listener:
    """One listening address in one namespace, which several processes (and sockets) may share."""

    id: int
    uid: int
    pid: int
    where: Listening
    claims_fd: int
    space: Namespace
    #: Whose policy speaks for it: the process of its user that registered it last.
    subject: Subject
    policy: Policy
    brought: Brought = NOTHING
    sources: Mapping[str, str] = field(default_factory=dict)
    #: The application that runs its chunnels itself, and what it offers.
    application: Process | None = None
    offer: Offer | None = None
    cookies: set[int] = field(default_factory=set)
    #: Others than `uid` whose programs have shown such a socket, and so may serve there.
    users: tuple[int, ...] = ()
    members: set[Process] = field(default_factory=set)
    #: Processes that may still tie connections to its links, also after it has stopped listening.
    servers: set[Process] = field(default_factory=set)
    #: Directory entries by address.
    entries: dict[bytes, int] = field(default_factory=dict)
    #: The addresses that had one when it stopped listening.
    reached_at: tuple[bytes, ...] = ()
    links: dict[int, Link] = field(default_factory=dict)
    next_index: int = 1
    listed: bool = True
    #: What its connections may have, as its claims say too, and which carrier serves them.
    need: DagNeed = DagNeed.NONE
    carrier: CarrierKind = CarrierKind.NATIVE
    #: The most that its processes spin for a carrier (microseconds); None: no rule says.
    spin_us: int | None = None
    #: Monotonic time at which to look whether somebody still listens, when no member vouches for it.
    check_at: float = 0.0

    @property
    def wildcard(self) -> bool:
        """Whether it is reached under every address of its namespace."""
        return addresses.is_wildcard(self.where.addr)


@dataclass(eq=False, slots=True)
class Link:
    """The memory between one client process and one listener."""

    listener: Listener
    index: int
    client: Process
    fd: int
    plan: WirePlan
    #: What servers are told of the client.
    claimant: Claimant
    #: How the client has reached the listener: protocol, address and port.
    place: tuple[str, bytes, int]
    servers: set[Process] = field(default_factory=set)
    #: For `unix`: the way by which the client hands over descriptors.  The servers' end stays here, the
    #: client's end is the client's alone, so that its end is seen.
    mailbox: socket.socket | None = None
    client_mailbox: socket.socket | None = None

    def tell_left_out(self, why: str) -> None:
        """For the log of the server's side: why the client has no chunnels, where some were preferred."""
        with contextlib.suppress(OSError):  # no memory for it
            memory.tell_left_out(self.fd, why if why.startswith(LEFT_OUT) else "")

    def open_mailbox(self) -> None:
        """Raises OSError."""
        self.client_mailbox, self.mailbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def take_client_mailbox(self) -> tuple[int, ...]:
        """The client's end, if there is one; it is the caller's from now on."""
        if self.client_mailbox is None:
            return ()
        end, self.client_mailbox = self.client_mailbox, None
        return (end.detach(),)

    def close(self) -> None:
        """Gives the memory up; whoever has mapped it keeps it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        for end in (self.mailbox, self.client_mailbox):
            if end is not None:
                end.close()
        self.mailbox = self.client_mailbox = None
