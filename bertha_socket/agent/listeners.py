"""Who listens where: the agent's listeners and their entries in the directory.

The kernel is asked whenever two accounts differ: a passed socket proves that its holder listens there now,
and where two registrations claim one address, the one whose socket the kernel would choose has it.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator

from bertha_socket.agent import addresses, limits, memory, plans, sockdiag
from bertha_socket.agent.messages import DagNeed
from bertha_socket.agent.model import Listener, Process, Refused
from bertha_socket.agent.sockets import Listening
from bertha_socket.agent.spaces import Namespace, Spaces
from bertha_socket.reasons import Reason as Why

_FIRST_CHECK_SECONDS = 1.0
_CHECK_SECONDS = 10.0
#: A program may close its listener as soon as it has accepted (inetd, `nc -l`): what that connection's ends
#: still have to agree on comes a little later.
_LATE_SECONDS = 30.0
_LATE_MAX = 1024
#: Users besides its own that a listener is served by; a carrier has room for one more (carrier/session.h).
_USERS_MAX = 64


class Listeners:
    """All listeners of this host that this agent knows."""

    def __init__(self, directory: memory.Directory) -> None:
        self._directory = directory
        self._by_id: dict[int, Listener] = {}
        self._by_place: dict[tuple[int, bytes, int, str], Listener] = {}
        #: Who has the directory's entry for (namespace, address, port, protocol).
        self._holders: dict[tuple[int, bytes, int, str], Listener] = {}
        self.spaces = Spaces(self._space_changed)
        #: Called with a listener that is reached under other addresses than before: other rules may hold.
        self.moved: Callable[[Listener], None] = lambda listener: None
        #: Called with the number of a listener that is no more.
        self.forgotten: Callable[[int], None] = lambda number: None
        #: Called with a listener when another user's process has shown its socket.
        self.shown: Callable[[Listener], None] = lambda listener: None
        #: Listeners for which no process vouches; each has a `check_at`.
        self._orphans: set[Listener] = set()
        #: Those with chunnels that are no more, and until when they may still be asked about; oldest first.
        self._late: dict[int, tuple[Listener, float]] = {}

    def __iter__(self) -> Iterator[Listener]:
        return iter(list(self._by_id.values()))

    def get(self, number: int) -> Listener | None:
        """The listener of that number, listed or (while its links live) not any more."""
        return self._by_id.get(number)

    def lately(self, number: int) -> Listener | None:
        """As `get`, or one with chunnels that has ended some seconds ago."""
        listener = self._by_id.get(number)
        if listener is None and number in self._late:
            listener = self._late[number][0]
        return listener

    def at(self, netns: int, addr: bytes, port: int, proto: str = "tcp") -> Listener | None:
        """Who is reached under that address from within that namespace, as far as we know."""
        return self._holders.get((netns, addr, port, proto))

    def anywhere(self, addr: bytes, port: int, proto: str = "tcp") -> list[Listener]:
        """All listeners under that address, whatever their namespace."""
        return [x for (_, *place), x in self._holders.items() if place == [addr, port, proto]]

    def entries_of(self, uid: int) -> int:
        """How many directory entries a user has."""
        return sum(len(x.entries) for x in self._by_id.values() if x.uid == uid)

    # -- coming ---------------------------------------------------------------------------------------

    def register(
        self, process: Process, where: Listening, route: socket.socket, diag: socket.socket, now: float
    ) -> Listener:
        """Enters a listening socket.  Takes the two netlink sockets over, whatever happens.

        Raises Refused, or OSError when there is no memory or descriptor for it.
        """
        space = Namespace(process.peer.uid, where.netns, route, diag)
        space.subscribe()
        try:
            known = self._known(process, where, diag)
            local = addresses.local_addresses(route) if addresses.is_wildcard(where.addr) else []
        except BaseException as error:
            space.close()
            if isinstance(error, OSError):
                raise Refused(Why.REFUSED_BY_AGENT) from error
            raise
        if known is not None:
            self._serves(known, process.peer.uid)
        reach = addresses.reachable_as(where.addr, where.v6only, local)[: limits.ADDRESSES_PER_LISTENER]
        offered = reach
        if process.offer is None and (known is None or known.offer is None):
            by = process if process.policy_error is None or known is None else known
            offered = [a for a in reach if plans.listed(by.policy, by.subject, a, where)]
        # A rule with chunnels may be about an address that is yet to come.
        later = addresses.is_wildcard(where.addr) and plans.has_dags(process.policy, "server", where.proto)
        if not offered and not later:
            space.close()
            first = reach[0] if reach else where.addr
            raise Refused(plans.refusal(process.policy, process.subject, first, where.port, where.proto))
        if known is None and process.peer.uid != 0:
            if self.entries_of(process.peer.uid) + len(offered) > limits.ENTRIES_PER_USER:
                space.close()
                raise Refused(Why.TABLE_FULL)
        if known is not None and known.uid != process.peer.uid:
            space.close()  # the namespace's sockets are the listener's own user's
            listener = known
        else:
            space = self.spaces.adopt(space)
            listener = known or self._new(process, where, space)
        listener.cookies.add(where.cookie)
        listener.members.add(process)
        listener.servers.add(process)
        if process.offer is not None:
            listener.application, listener.offer = process, process.offer
            for addr in list(listener.entries):  # they are to say that there is something to negotiate
                self._remove_entry(listener, addr)
        if process.peer.uid == listener.uid:  # not a worker that has changed its user
            listener.subject, listener.policy = process.subject, process.policy
            listener.brought, listener.sources = process.brought, process.sources
        self._orphans.discard(listener)
        process.listeners.add(listener)
        self._place(listener, offered)
        if offered and not listener.entries and known is None:
            self.leave(process, listener, now, closed=True)
            raise Refused(Why.TABLE_FULL)
        return listener

    def joins(self, process: Process, where: Listening) -> bool:
        """Whether that socket is a listener's of another user, which the process has inherited."""
        known = self._by_place.get((where.netns, where.addr, where.port, where.proto))
        return known is not None and known.uid != process.peer.uid and where.cookie in known.cookies

    def _serves(self, listener: Listener, uid: int) -> None:
        """That user's process has the very socket: it gets connections without us, too."""
        if uid != listener.uid and uid not in listener.users:
            listener.users = (*listener.users, uid)[-_USERS_MAX:]
            self.shown(listener)

    def _known(self, process: Process, where: Listening, diag: socket.socket) -> Listener | None:
        """The listener that this socket belongs to, if it is registered already."""
        known = self._by_place.get((where.netns, where.addr, where.port, where.proto))
        if known is None or known.uid == process.peer.uid or where.cookie in known.cookies:
            return known
        # Another user's.  The kernel does not let two users listen at one place, so one of them is gone.
        found = sockdiag.is_listening(diag, where.addr, where.port, where.proto)
        if found is None or found.cookie != where.cookie:
            raise Refused(Why.REFUSED_BY_AGENT)
        self._delist(known)
        return None

    def _new(self, process: Process, where: Listening, space: Namespace) -> Listener:
        number = 0
        while number == 0 or number in self._by_id:
            number = secrets.randbits(64)
        try:
            claims = memory.make_claims(number)
        except OSError:
            self.spaces.release(space)
            raise
        listener = Listener(
            number,
            process.peer.uid,
            process.peer.pid,
            where,
            claims,
            space,
            process.subject,
            process.policy,
            process.brought,
            process.sources,
        )
        space.listeners += 1
        self._by_id[number] = listener
        self._by_place[(where.netns, where.addr, where.port, where.proto)] = listener
        return listener

    # -- the directory's entries ----------------------------------------------------------------------

    def _place(self, listener: Listener, wanted: list[bytes]) -> None:
        """Makes the listener's entries be `wanted`, as far as others do not hold them rightly."""
        for addr in [a for a in listener.entries if a not in wanted]:
            self._remove_entry(listener, addr)
        where = listener.where
        for addr in wanted:
            key = (where.netns, addr, where.port, where.proto)
            holder = self._holders.get(key)
            if holder is listener:
                continue
            if holder is not None:
                if not self._is_chosen(listener, addr):
                    continue
                self._remove_entry(holder, addr)
            flags = memory.LOOPBACK if addresses.is_loopback(addr) else 0
            if where.proto == "udp":
                flags |= memory.DATAGRAMS
            if listener.offer is not None or plans.wants_chunnels(
                listener.policy, listener.subject, addr, where
            ):
                flags |= memory.DAG
            index = self._directory.insert(
                addr, where.port, flags, where.netns, listener.id, listener.uid, listener.pid
            )
            if index is None:
                return
            listener.entries[addr] = index
            self._holders[key] = listener

    @staticmethod
    def _is_chosen(listener: Listener, addr: bytes) -> bool:
        """Whether the kernel would hand a connection to `addr` to this listener's socket."""
        try:
            where = listener.where
            found = sockdiag.is_listening(listener.space.diag, addr, where.port, where.proto)
        except OSError:
            return False
        return found is not None and found.cookie in listener.cookies

    def _remove_entry(self, listener: Listener, addr: bytes) -> None:
        index = listener.entries.pop(addr)
        self._directory.remove(index, listener.id)
        where = listener.where
        del self._holders[(where.netns, addr, where.port, where.proto)]

    def refresh(self, listener: Listener) -> None:
        """Brings a wildcard listener's entries in line with the addresses that its namespace has now."""
        if not listener.listed or not listener.wildcard:
            return
        try:
            local = addresses.local_addresses(listener.space.route)
        except OSError:
            return  # what was true a moment ago is a better guess than nothing
        where = listener.where
        reach = addresses.reachable_as(where.addr, where.v6only, local)[: limits.ADDRESSES_PER_LISTENER]
        before = set(listener.entries)
        self._place(
            listener,
            [
                a
                for a in reach
                if listener.offer is not None or plans.listed(listener.policy, listener.subject, a, where)
            ],
        )
        if before != listener.entries.keys():
            self.moved(listener)

    def _space_changed(self, space: Namespace) -> None:
        for listener in self:
            if listener.space is space:
                self.refresh(listener)

    # -- going ----------------------------------------------------------------------------------------

    def leave(self, process: Process, listener: Listener, now: float, *, closed: bool = False) -> None:
        """One process does not listen there any more.  `closed`: nor does anybody else."""
        listener.members.discard(process)
        process.listeners.discard(listener)
        if listener.application is process and listener.listed:
            self._delist(listener)  # nobody is left who runs its chunnels
        if listener.members or not listener.listed:
            return
        if closed or not self.still_listening(listener):
            self._delist(listener)
        else:  # a forked child has the socket, or its close is still under way
            listener.check_at = now + _FIRST_CHECK_SECONDS
            self._orphans.add(listener)

    def still_listening(self, listener: Listener) -> bool:
        """Whether the kernel has a listening socket there that is this listener's, or its user's."""
        where = listener.where
        try:
            found = sockdiag.is_listening(listener.space.diag, where.addr, where.port, where.proto)
        except OSError:
            return False
        if found is None:
            return False
        # Another socket of this user at this very place: one of a family that shares the port.
        another = found.uid == listener.uid and found.local == where.addr
        return another or found.cookie in listener.cookies

    def check_orphans(self, now: float) -> float | None:
        """Looks after listeners for which no process vouches; the time at which to look again."""
        for listener in list(self._orphans):
            if listener.check_at > now or not listener.listed:
                continue
            if self.still_listening(listener):
                listener.check_at = now + _CHECK_SECONDS
            else:
                self._delist(listener)
        for number, (_, until) in list(self._late.items()):
            if until <= now:
                self._end_late(number)
        return self.next_check()

    def drop_if_gone(self, listener: Listener) -> bool:
        """For a listener without a process: whether it is gone; if so it is delisted."""
        if listener.members or self.still_listening(listener):
            return False
        self._delist(listener)
        return True

    def _delist(self, listener: Listener) -> None:
        where = listener.where
        listener.listed = False
        listener.reached_at = tuple(listener.entries)
        self._orphans.discard(listener)
        for addr in list(listener.entries):
            self._remove_entry(listener, addr)
        self._by_place.pop((where.netns, where.addr, where.port, where.proto), None)
        for process in list(listener.members):
            process.listeners.discard(listener)
        listener.members.clear()
        listener.space.listeners -= 1
        self.spaces.release(listener.space)
        self.forget_if_done(listener)
        for other in self:  # a specific address may have hidden a wildcard's entry
            if other.where.port == where.port and other.where.netns == where.netns:
                self.refresh(other)

    def forget_if_done(self, listener: Listener) -> None:
        """A listener that has stopped lives on while somebody may still tie connections to its links."""
        if listener.listed or (listener.links and listener.servers):
            return
        if self._by_id.pop(listener.id, None) is None:
            return
        if listener.need == DagNeed.NONE:
            self.forgotten(listener.id)
        else:
            self._late[listener.id] = (listener, time.monotonic() + _LATE_SECONDS)
            if len(self._late) > _LATE_MAX:
                self._end_late(next(iter(self._late)))
        os.close(listener.claims_fd)
        for link in list(listener.links.values()):
            link.client.links.pop((listener.id, link.index), None)
            for server in link.servers:
                server.served.discard(link)
            link.close()
        listener.links.clear()

    def _end_late(self, number: int) -> None:
        del self._late[number]
        self.forgotten(number)

    def server_ended(self, process: Process) -> None:
        """A process that may have served listeners has ended (after `leave` for each of its own)."""
        for listener in self:
            if process in listener.servers:
                listener.servers.discard(process)
                self.forget_if_done(listener)

    def next_check(self) -> float | None:
        """When `check_orphans` has something to look after; None while every listener has a process."""
        late = (until for _, until in self._late.values())
        return min([*(x.check_at for x in self._orphans), *late], default=None)
