"""The tables [agent] and [cluster] of a policy file: what an agent, rather than a connection, goes by.

    [agent]
    choose = "choice.py:local_software_only"   # or "module:function"
    idle = 60                                  # seconds; 0: it never leaves
    port = 7277
    peers = ["10.0.0.0/8"]
    limits = { connections_per_user = 512 }

    [cluster]
    key = "cluster.key"

An environment variable of the same meaning goes first.  Only a file that belongs to the agent's own user, or
to root, is believed: what is here makes an agent run code and trust hosts.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Mapping
from typing import Final, NamedTuple

from bertha_socket._policy_file import find_file
from bertha_socket._policy_reader import PolicyError, Reader

#: What may be limited, with the least and the most; the defaults are agent/limits.py's.
LIMITS: Final = {
    "connections": (16, 65536),
    "connections_per_user": (1, 65536),
    "entries_per_user": (1, 8191),  # one less than the directory has (BERTHA_DIR_ENTRIES)
    "listeners_per_process": (1, 4096),
    "links_per_process": (1, 4096),
    "carriers_per_process": (1, 1024),
}
_IDLE_MAX: Final = 1_000_000_000
_AGENT_KEYS: Final = ("choose", "idle", "port", "peers", "limits")


class Settings(NamedTuple):
    """What a policy file says about its agent.  None: it does not say."""

    #: "module:function", or "/path/file.py:function".
    choose: str | None = None
    #: Seconds without programs after which the agent leaves; 0: never.
    idle: int | None = None
    #: TCP port of the agents; 0: none.
    port: int | None = None
    #: Networks, or nothing but "none".
    peers: tuple[str, ...] | None = None
    limits: tuple[tuple[str, int], ...] = ()
    #: Absolute path of the cluster key.
    key: str | None = None

    def environment(self) -> dict[str, str]:
        """The same as environment variables, where there are any."""
        found = {}
        if self.choose is not None:
            found["BERTHA_CHOICE"] = self.choose
        if self.port is not None:
            found["BERTHA_AGENT_PORT"] = str(self.port)
        if self.peers is not None:
            found["BERTHA_AGENT_PEERS"] = ",".join(self.peers)
        return found


NO_SETTINGS: Final = Settings()


def settings_of(agent: object, cluster: object, path: str) -> Settings:
    """What the two tables say; None: there is no such table.  Raises PolicyError."""
    for name, table in (("agent", agent), ("cluster", cluster)):
        if table is not None and not isinstance(table, dict):
            raise PolicyError(f"{path}: '{name}' must be one table; write [{name}] with single brackets")
    found = NO_SETTINGS
    if isinstance(agent, dict):
        reader = Reader(path, 0, agent, "[agent]")
        found = found._replace(
            choose=_choose(reader, path),
            idle=reader.number("idle", 0, _IDLE_MAX, "seconds"),
            port=reader.number("port", 0, 65535, "a TCP port"),
            peers=_peers(reader),
            limits=_limits(reader),
        )
        reader.done(_AGENT_KEYS)
    if isinstance(cluster, dict):
        reader = Reader(path, 0, cluster, "[cluster]")
        key = reader.text("key")
        found = found._replace(key=_beside(path, key) if key is not None else None)
        reader.done(("key",))
    return found


def _beside(path: str, name: str) -> str:
    return os.path.join(os.path.dirname(os.path.abspath(path)), name)


def _choose(reader: Reader, path: str) -> str | None:
    text = reader.text("choose")
    if text is None:
        return None
    place, _, function = text.rpartition(":")
    if not place or not function.isidentifier():
        remedy = 'write "module:function" or "/path/file.py:function"'
        raise reader.fail("choose", f"{text!r} does not say where a function is; {remedy}")
    return f"{_beside(path, place) if place.endswith('.py') else place}:{function}"


def _peers(reader: Reader) -> tuple[str, ...] | None:
    if not reader.has("peers"):
        return None
    found = reader.names("peers")
    for text in found:
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise reader.fail("peers", f'{text!r} is no network; write "10.0.0.0/8"') from None
    return found or ("none",)


def _limits(reader: Reader) -> tuple[tuple[str, int], ...]:
    inner = reader.table("limits")
    if inner is None:
        return ()
    found = []
    for name, (low, high) in LIMITS.items():
        value = inner.number(name, low, high, "them")
        if value is not None:
            found.append((name, value))
    inner.done(tuple(LIMITS))
    return tuple(found)


def why_not_ours(path: str) -> str | None:
    """Why a file must not tell this user's programs what to run or to trust; None: it may.

    Raises OSError when there is no such file.
    """
    found = os.stat(path)
    if found.st_uid not in (0, os.geteuid()):
        return f"it belongs to another user (uid {found.st_uid}); make it your own (chown)"
    # Where each user has a group of their own, files are often writable for the group.
    others = 0o022 if os.geteuid() == 0 else 0o002
    if found.st_mode & others:
        return f"others may write to it (mode {stat.S_IMODE(found.st_mode):04o}); run 'chmod go-w' on it"
    return None


def in_force(environ: Mapping[str, str] | None = None) -> Settings:
    """What this user's own policy file, or the one that the environment names, says.

    Raises PolicyError: it cannot be read, makes no sense, or has settings and is somebody else's.
    """
    path = find_file(environ)
    if path is None:
        return NO_SETTINGS
    from bertha_socket import policy  # only where there is a file: it costs a program's start

    found = policy.load(path).settings
    if found != NO_SETTINGS:
        why = why_not_ours(path)
        if why is not None:
            raise PolicyError(f"{path}: [agent] and [cluster] are not believed: {why}")
    return found


_Mark = tuple[str, int, int, int]
_key_known: dict[str, tuple[_Mark, str | None]] = {}


def key_path(environ: Mapping[str, str] | None = None) -> str | None:
    """The cluster key's file, as [cluster] of the policy file in force has it; None: it says nothing.

    Remembers what a file says until the file changes.  Raises PolicyError.
    """
    path = find_file(environ)
    if path is None:
        return None
    try:
        found = os.stat(path)
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror}") from None
    mark = (path, found.st_ino, found.st_mtime_ns, found.st_size)
    known = _key_known.get(path)
    if known is None or known[0] != mark:
        known = (mark, in_force(environ).key)
        _key_known.clear()
        _key_known[path] = known
    return known[1]
