"""Network namespaces that a test makes for itself, with names of its own, and removes again.

`NamespaceTrio`: `server` and `client` are joined by a veth pair; `trap` is joined to nothing, but has the
server's address too: whoever confuses the two by address alone connects the wrong programs.

A trio that a test leaves as it found it serves the next one: the kernel takes its time to make and to remove
them, once more than a minute.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

_counter = itertools.count(1)
_PREFIX = f"bt{os.getpid()}"


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def leftover_namespaces() -> list[str]:
    """Names of namespaces that this test process made and has not removed."""
    if shutil.which("ip") is None:
        return []
    return [line.split()[0] for line in _ip("netns", "list").splitlines() if line.startswith(_PREFIX)]


@cache
def namespaces_unavailable() -> str | None:
    """Why this user cannot make network namespaces and veth pairs here, or None: found by making them."""
    for tool in ("ip", "nsenter"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    try:
        NamespaceTrio().close()
    except OSError as error:
        return f"cannot make network namespaces: {error}"
    return None


@dataclass(frozen=True)
class Namespace:
    """One namespace; `address` is what it has on its veth (or, in the trap, on its loopback)."""

    name: str
    address: str

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command line that executes `command` in this namespace, in the same process.

        nsenter, because `ip netns exec` would hide /sys/fs/cgroup as well.
        """
        return ["nsenter", f"--net=/run/netns/{self.name}", "--", *command]


class NamespaceTrio:
    """Two joined namespaces and the trap. `close` removes all of it."""

    _idle: ClassVar[list[NamespaceTrio]] = []

    @classmethod
    def lend(cls) -> NamespaceTrio:
        """One that nobody uses."""
        return cls._idle.pop() if cls._idle else cls()

    def give_back(self) -> None:
        """Keep it for the next one, unless something in it is not as it was made."""
        if self._state() == self._as_made and not any(_ip("netns", "pids", name) for name in self._made):
            self._idle.append(self)
        else:
            self.close()

    @classmethod
    def close_idle(cls) -> None:
        """Remove those that nobody uses."""
        while cls._idle:
            cls._idle.pop().close()

    def __init__(self) -> None:
        number = next(_counter)
        third = (os.getpid() + number) % 250 + 1
        names = [f"{_PREFIX}x{number}{letter}" for letter in "sct"]
        server, client = f"10.83.{third}.1", f"10.83.{third}.2"
        self.server = Namespace(names[0], server)
        self.client = Namespace(names[1], client)
        self.trap = Namespace(names[2], server)
        self._made: list[str] = []
        try:
            self._make()
            self._as_made = self._state()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        for space in (self.server, self.client, self.trap):
            self._made.append(space.name)
            _ip("netns", "add", space.name)
            _ip("-n", space.name, "link", "set", "lo", "up")
        _ip(
            *("-n", self.server.name, "link", "add", "v0", "type", "veth"),
            *("peer", "name", "v0", "netns", self.client.name),
        )
        for space in (self.server, self.client):
            _ip("-n", space.name, "addr", "add", f"{space.address}/24", "dev", "v0")
            _ip("-n", space.name, "link", "set", "v0", "up")
        _ip("-n", self.trap.name, "addr", "add", f"{self.trap.address}/24", "dev", "lo")

    def _state(self) -> list[object]:
        """Links, addresses and routes, but not those that the kernel adds after a while (fe80::)."""
        tables: list[object] = []
        for name in self._made:
            for link in json.loads(_ip("-n", name, "-json", "addr")):
                addresses = [(a["local"], a["prefixlen"]) for a in link["addr_info"] if a["scope"] != "link"]
                tables.append((link["ifname"], "UP" in link["flags"], sorted(addresses)))
            tables.append(_ip("-n", name, "-4", "route", "show", "table", "all"))
        return tables

    def close(self) -> None:
        """Remove the namespaces; the veth pair goes with them."""
        for name in self._made:
            with contextlib.suppress(OSError):  # it never came to be
                _ip("netns", "del", name)
        self._made.clear()
