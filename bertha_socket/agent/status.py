"""What `bertha ps` and `bertha doctor` are told: the agent's state and every live connection, as JSON.

Connections come from the processes' tables, memory that those processes write: it is read with pread (never
mapped) and taken for a claim, not for the truth.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Final

from bertha_socket._native import ffi, lib
from bertha_socket._version import __version__
from bertha_socket.agent import addresses, carried, plans
from bertha_socket.agent.model import Link, Listener, Process
from bertha_socket.agent.registry import Registry
from bertha_socket.negotiation.plan import LEFT_OUT
from bertha_socket.reasons import Reason, text_of

_CHUNK: Final = 1 << 20
#: Connections told of: a limit on what a hostile table can cost.
_CONNECTIONS_MAX: Final = 1 << 17

_IMPLEMENTATION: Final = {lib.BERTHA_CONN_SHM: "shm", lib.BERTHA_CONN_UNIX: "unix"}
#: BERTHA_CARRIER_*
_CARRIERS: Final = ("native", "python", "authors")
#: Why a connection that still waits for its peer is plain: as connlog.c says when it ends like that.
_WAITING: Final = {lib.BERTHA_CONN_CLAIMED: Reason.NOT_ATTACHED, lib.BERTHA_CONN_MAYBE: Reason.PEER_UNAWARE}


def _reason_text(kind: int, code: int) -> str | None:
    why = _WAITING.get(kind, code)
    return text_of(why) if why else None


def _joined(*parts: str | None) -> str | None:
    return "; ".join(filter(None, parts)) or None


def _connection(conn: Any, index: int, process: Process) -> dict[str, Any]:
    """The connection log's object (native/core/connlog.c) of a connection that is still there."""
    proto = "udp" if conn.family & lib.BERTHA_FAMILY_DATAGRAMS else "tcp"
    implementation = "shm" if conn.boxed else _IMPLEMENTATION.get(conn.kind, proto)
    plain = implementation == proto
    where = "global" if plain else "host"
    chunnels = [{"type": "local_or_remote", "implementation": implementation, "where": where}]
    reason = _reason_text(conn.kind, 0 if conn.boxed else conn.reason)
    # As for the mailbox of `unix`, a socketpair has taken the kernel's place.
    swapped = conn.kind in (lib.BERTHA_CONN_UNIX, lib.BERTHA_CONN_CARRIED) and process.carried_fd >= 0
    told = carried.look(process.carried_fd, index, proto) if swapped else None
    if told is not None:
        chunnels, plain, why, remark = told
        reason = _joined(why or reason, remark)
    elif conn.role == lib.BERTHA_SIDE_CLIENT:
        said = process.told.get((proto, bytes(conn.peer_addr), conn.peer_port), "")
        if said.startswith(LEFT_OUT):
            reason = _joined(reason, said)
        elif plain and reason and said:  # as connlog.c
            reason = f"{reason}; chunnels: {said}"
    carriers: dict[str, object] = {}
    if 0 < conn.carried_by <= len(_CARRIERS):
        carriers["carried_by"] = _CARRIERS[conn.carried_by - 1]
        if 0 < conn.beside < len(_CARRIERS):
            carriers["beside"] = _CARRIERS[conn.beside]
    return {
        "time": conn.opened_ns / 1e9,
        "pid": process.peer.pid if conn.pid == process.hello.pid else conn.pid,
        "program": process.hello.name or process.hello.program,
        "role": "server" if conn.role == lib.BERTHA_SIDE_SERVER else "client",
        "proto": proto,
        "local": addresses.endpoint(bytes(conn.local_addr), conn.local_port),
        "peer": addresses.endpoint(bytes(conn.peer_addr), conn.peer_port),
        "chunnels": chunnels,
        "plain": plain,
        "reason": reason,
        "tx_bytes": conn.tx_bytes,
        "rx_bytes": conn.rx_bytes,
        "setup_us": conn.setup_us,
        **carriers,
    }


def connections(process: Process, most: int) -> list[dict[str, Any]]:
    """The live connections in a process's table; none when it has no table or one that makes no sense."""
    fd = process.table_fd
    if fd < 0 or most <= 0:
        return []
    found: list[dict[str, Any]] = []
    try:
        size = os.fstat(fd).st_size
        header = os.pread(fd, lib.SIZEOF_bertha_table_header, 0)
        table = ffi.new("struct agent_table *")
        if lib.agent_table_read(ffi.from_buffer(header), len(header), size, table) != 0:
            return []
        stride = table.conn_size
        per_chunk = max(1, _CHUNK // stride)
        out = ffi.new("struct agent_conn[]", per_chunk)
        at = 0
        while at < table.used and len(found) < most:
            count = min(per_chunk, table.used - at)
            data = os.pread(fd, count * stride, table.conn_offset + at * stride)
            good = lib.agent_conns_read(ffi.from_buffer(data), len(data), stride, count, out)
            for i in range(min(good, most - len(found))):
                found.append(_connection(out[i], at + out[i].index, process))
            if len(data) < count * stride:
                break
            at += count
    except (OSError, ValueError):
        pass
    return found


def _tell_servers(live: list[dict[str, Any]]) -> None:
    """A server's end has what was left out from the client's, where both are here: the program cannot know
    it of a connection without a plan."""
    told: dict[tuple[str, str, str], str | None] = {}
    for c in live:
        if c["role"] == "client" and c["reason"] and LEFT_OUT in c["reason"]:
            ends = c["proto"], c["local"], c["peer"]
            # Two namespaces may have the same addresses: then it is not known whose it is.
            told[ends] = None if ends in told else c["reason"][c["reason"].index(LEFT_OUT) :]
    for c in live:
        said = told.get((c["proto"], c["peer"], c["local"]))
        if c["role"] == "server" and said and LEFT_OUT not in (c["reason"] or ""):
            c["reason"] = _joined(c["reason"], said)


def _process(process: Process) -> dict[str, object]:
    return {
        "pid": process.peer.pid,
        "uid": process.peer.uid,
        "program": process.hello.program,
        "exe": process.hello.exe,
        "name": process.hello.name,
        "policy": process.hello.policy or process.policy.path,
        "policy_error": process.policy_error,
        "package_version": process.hello.package_version,
        "since": process.since,
        "listeners": len(process.listeners),
        "links": len(process.links),
        "bells": len(process.bells),
    }


def _listener(listener: Listener) -> dict[str, object]:
    where = listener.where
    return {
        "id": f"{listener.id:016x}",
        "proto": where.proto,
        "address": addresses.endpoint(where.addr, where.port),
        "entries": [addresses.endpoint(a, where.port) for a in listener.entries],
        "netns": where.netns,
        "uid": listener.uid,
        "pid": listener.pid,
        "pids": sorted(p.peer.pid for p in listener.members),
        "program": listener.subject.program,
        "listed": listener.listed,
        "chunnels": (
            listener.need if listener.offer is None else plans.need_of_offer(listener.offer)
        ).name.lower(),
        "links": len(listener.links),
    }


def _link(link: Link) -> dict[str, object]:
    return {
        "listener": f"{link.listener.id:016x}",
        "index": link.index,
        "client_pid": link.client.peer.pid,
        "server_pids": sorted(p.peer.pid for p in link.servers),
        "implementation": plans.implementation_name(link.plan.implementation),
    }


def agent_facts(registry: Registry, started: float) -> dict[str, object]:
    """The agent itself.  `started` is a time.time()."""
    return {
        "pid": os.getpid(),
        "uid": os.geteuid(),
        "generation": registry.directory.generation,
        "uptime": round(time.time() - started, 3),
        "entries": registry.directory.count(),
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,
    }


def describe(registry: Registry, agent: dict[str, object], uid: int) -> bytes:
    """Everything for root and for the agent's own user; for others what is theirs."""
    sees_all = uid in (0, os.geteuid())
    processes = [p for p in registry.processes if sees_all or p.peer.uid == uid]
    processes.sort(key=lambda p: p.peer.pid)
    listeners = [x for x in registry.listeners if sees_all or x.uid == uid]
    live: list[dict[str, Any]] = []
    for process in processes:
        live += connections(process, _CONNECTIONS_MAX - len(live))
    _tell_servers(live)
    document = {
        "version": __version__,
        "agent": agent,
        "processes": [_process(p) for p in processes],
        "listeners": [_listener(x) for x in listeners],
        "links": [_link(link) for p in processes for link in p.links.values()],
        "connections": live,
    }
    return json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def write(registry: Registry, agent: dict[str, object], uid: int, fd: int) -> None:
    """Writes `describe` to a file."""
    view = memoryview(describe(registry, agent, uid))
    while view:
        view = view[os.write(fd, view) :]
