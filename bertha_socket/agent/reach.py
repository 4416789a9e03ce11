"""Which destinations' hosts are asked for an agent, and the port on which agents answer one another.

A destination on the Internet at large is not ours to probe: by default only private, unique local and
link-local addresses are (RFC 1918, 4193, 3927, 4291).  $BERTHA_AGENT_PEERS replaces that list.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Mapping
from typing import Final, NamedTuple

from bertha_socket.agent import addresses
from bertha_socket.negotiation.choose import Policy

DEFAULT_PORT: Final = 7277
_DEFAULT: Final = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,169.254.0.0/16,fc00::/7,fe80::/10"

_BACKLOG: Final = 64

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def port(environ: Mapping[str, str] | None = None) -> int:
    """$BERTHA_AGENT_PORT or 7277; 0: this agent speaks with no other.  Raises ValueError."""
    text = (os.environ if environ is None else environ).get("BERTHA_AGENT_PORT") or str(DEFAULT_PORT)
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ValueError(f"BERTHA_AGENT_PORT: {text!r} is no port; write a number from 0 (none) to 65535")
    return int(text)


def open_port(port: int) -> socket.socket | str:
    """Listens on the agents' port, on all addresses of this network namespace; or one line why not."""
    if not port:
        return "BERTHA_AGENT_PORT is 0"
    for family, host in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            problem = error
            continue
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((host, port))
            sock.listen(_BACKLOG)
            return sock
        except OSError as error:
            problem = error
            sock.close()
            if error.errno == errno.EADDRINUSE:
                break
    return f"port {port} cannot be listened on ({problem.strerror}); set BERTHA_AGENT_PORT"


def open_letters(listening: socket.socket | str) -> socket.socket | None:
    """Beside a socket that listens on the agents' port: where questions come as datagrams.  None: it cannot
    be had, and they come by connections."""
    if isinstance(listening, str):
        return None
    sock = None
    try:
        sock = socket.socket(listening.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        if listening.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(listening.getsockname()[:2])
        return sock
    except OSError:
        if sock is not None:
            sock.close()
        return None


class Reach:
    """The networks whose hosts may have agents for us."""

    def __init__(self, networks: tuple[_Network, ...]) -> None:
        self._networks = networks

    def __contains__(self, addr: bytes) -> bool:
        if addresses.is_loopback(addr) or addresses.is_wildcard(addr):
            return False
        found = ipaddress.ip_address(addresses.to_text(addr))
        return any(found.version == n.version and found in n for n in self._networks)


def from_environment(environ: Mapping[str, str] | None = None) -> Reach:
    """$BERTHA_AGENT_PEERS (networks, separated by commas; `none`), or the default.  Raises ValueError."""
    text = (os.environ if environ is None else environ).get("BERTHA_AGENT_PEERS") or _DEFAULT
    if text.strip() == "none":
        return Reach(())
    try:
        return Reach(tuple(ipaddress.ip_network(word.strip(), strict=False) for word in text.split(",")))
    except ValueError as error:
        raise ValueError(f"BERTHA_AGENT_PEERS: {error}; write networks such as 10.0.0.0/8, or none") from None


class Others(NamedTuple):
    """How this agent meets those of other hosts."""

    reach: Reach
    #: On which they answer; 0: it asks none.
    port: int
    #: On which it answers itself, or one line why not.
    listening: socket.socket | str
    #: Where carriers write; None: to the agent's standard error.
    carrier_log: str | None = None
    #: An operator's order of preference.
    choice: Policy | None = None
    #: Where questions come as datagrams; None: nowhere.
    letters: socket.socket | None = None


NO_OTHERS: Final = Others(Reach(()), 0, "not asked for")
