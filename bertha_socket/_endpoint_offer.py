"""What an endpoint of `bertha_socket.new` offers: its own DAG, what a policy file adds, and what runs in this
process."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import socket
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from bertha_socket import keys, policy
from bertha_socket._bottom import upper
from bertha_socket.agent import addresses, netlink
from bertha_socket.agent.authors import NOTHING
from bertha_socket.agent.offers import checker, chunnel_rules
from bertha_socket.agent.omissions import NO_PLAN
from bertha_socket.agent.plans import make_subject
from bertha_socket.agent.secrets import named_files
from bertha_socket.agent.secrets import read as read_files
from bertha_socket.chunnels import ChunnelType, Implementation, all_types, encrypt, get
from bertha_socket.dag import Chunnel, Dag, Need, Scope, parse
from bertha_socket.negotiation.choose import without_a_plan
from bertha_socket.negotiation.offer import Offer, OfferedChunnel, OfferedType, offer_of
from bertha_socket.negotiation.plan import Plan, acceptable

__all__ = ["Terms", "Wanted", "has_foreign", "offer_for", "required_of", "wanted_for"]

_WILDCARDS = ("", "0.0.0.0", "::")


class Wanted(NamedTuple):
    """What one end of an endpoint wants, its policy's rule taken into account."""

    offer: Offer
    #: PEM texts for `encrypt`: of the certificates that its arguments name, else of the cluster's key.
    material: dict[str, str] | None

    def alone(self) -> str:
        """For the log: what a client goes without at a server that has no plan."""
        return without_a_plan(self.offer, "client", "the server does not speak of chunnels").left_out


def offer_for(name: str, dag: Dag, side: str, address: tuple[str, int], proto: str = "tcp") -> Offer:
    """The offer of `wanted_for`."""
    return wanted_for(name, dag, side, address, proto).offer


def wanted_for(name: str, dag: Dag, side: str, address: tuple[str, int], proto: str = "tcp") -> Wanted:
    """What the endpoint `name` wants as `side` ("client", "server") of what it has with `address`.

    The policy file is the one that applies to this process, as for any program (BERTHA_POLICY, the user's,
    the system's); its rules see the endpoint by its name.  Raises OSError: a DAG or policy without sense, or
    a certificate that cannot be used.
    """
    rule = _rule(name, side, address, proto)
    text = rule.dag if rule is not None else ""
    wanted = upper(parse(text)) if text else ()
    key = keys.find()
    chunnels = Dag(_united(upper(dag), wanted))
    files = named_files(chunnels)

    def usable(kind: ChunnelType, implementation: Implementation) -> bool:
        if implementation.make is None or (kind.name == "encrypt" and key is None and not files):
            return False
        return implementation.probe() is None

    offer = _here(offer_of(chunnels, all_types(), chunnel_rules(rule), usable))
    material: dict[str, str] | None
    if files:
        material = encrypt.checked(read_files(files))
    else:
        material = keys.material(key) if key is not None else None
    if key is None:  # its own certificate is for its own chunnel
        offer = dataclasses.replace(offer, able=tuple(t for t in offer.able if t.type != "encrypt"))
    return Wanted(offer, material)


def _rule(name: str, side: str, address: tuple[str, int], proto: str) -> policy.Rule | None:
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
    return rules.find(subject, side, proto, where, address[1])


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


def required_of(offer: Offer) -> list[str]:
    """The types of the chunnels without which there is no connection."""
    return [c.type for c in offer.chunnels if c.need is Need.REQUIRE]


def has_foreign(offer: Offer) -> bool:
    """Whether code that is not ours (or that touches files) may run here, whatever a client asks for."""
    entries: list[OfferedType | OfferedChunnel] = [*offer.able, *offer.chunnels]
    while entries:
        entry = entries.pop()
        if isinstance(entry, OfferedChunnel):
            entries += entry.inner
        if entry.implementations and not all(i.builtin for i in get(entry.type).implementations):
            return True
    return False


class Terms:
    """What a listener insists on.  Under a wildcard address rules may differ by the address that is reached:
    everybody is offered what the strictest says, and nobody gets less than his address's own."""

    def __init__(self, name: str, dag: Dag, address: tuple[str, int], proto: str = "tcp") -> None:
        """Raises OSError: a DAG or policy without sense, or a certificate that cannot be used."""
        self._name, self._dag, self._proto = name, dag, proto
        self._wildcard = address[0] in _WILDCARDS
        found = [wanted_for(name, dag, "server", address, proto)]
        if self._wildcard:
            for host in _own_addresses():
                found.append(wanted_for(name, dag, "server", (host, address[1]), proto))
        strictest = max(found, key=lambda w: (len(required_of(w.offer)), len(w.offer.chunnels)))
        #: For the agent.
        self.offer = strictest.offer
        self._strictest = strictest
        self._at: dict[str, Wanted] = {}

    def _wanted(self, host: str, port: int) -> Wanted:
        if not self._wildcard:
            return self._strictest
        host = host.removeprefix("::ffff:")
        if host not in self._at:
            self._at[host] = wanted_for(self._name, self._dag, "server", (host, port), self._proto)
        return self._at[host]

    def at(self, host: str, port: int) -> Offer:
        """The offer to those who have reached this address.  Raises OSError."""
        return self._wanted(host, port).offer

    def material(self, host: str, port: int) -> dict[str, str] | None:
        """PEM texts for `encrypt` there.  Raises OSError."""
        return self._wanted(host, port).material

    def required(self, host: str, port: int) -> list[str]:
        """The types of the chunnels without which nobody is served there."""
        return [*dict.fromkeys([*required_of(self.offer), *required_of(self.at(host, port))])]

    def alone(self, host: str, port: int) -> str:
        """For the log: what goes without a plan there.  Raises OSError."""
        return without_a_plan(self.at(host, port), "server", NO_PLAN).left_out

    def judge(self, host: str, port: int) -> Callable[[bytes], str | None]:
        """Whether a plan that a client shows may run there: None, or one line why not."""
        check = checker(NOTHING)
        offers = dict.fromkeys((self.offer, self.at(host, port)))

        def why_not(data: bytes) -> str | None:
            try:
                plan = Plan.decode(data)
                problems = (acceptable(plan, offer, "server", check) for offer in offers)
                problem = next((p for p in problems if p is not None), None)
            except OSError as error:
                return error.strerror or str(error)
            return None if problem is None else str(problem)

        return why_not


def _own_addresses() -> list[str]:
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE) as route:
            return [addresses.to_text(addr) for addr in addresses.local_addresses(route)]
    except OSError:
        return []  # then each connection's own address alone decides
