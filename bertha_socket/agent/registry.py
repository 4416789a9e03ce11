"""The rules by which processes get listeners, links and bells of one another.  No I/O with clients."""

from __future__ import annotations

import errno
import math
import os
import resource
import secrets
import socket
from collections.abc import Collection

from bertha_socket.agent import addresses, limits, memory, messages, plans, room, sockdiag
from bertha_socket.agent.brief import Brief
from bertha_socket.agent.listeners import Listeners
from bertha_socket.agent.messages import Connect, DagNeed, Resolve
from bertha_socket.agent.model import Link, Listener, Process, Refused
from bertha_socket.agent.sockets import Listening
from bertha_socket.reasons import Reason as Why

_LINK_INDEX_MAX = 0xFFFFFF  # what a claim's word has room for


def why_of(error: OSError) -> Why:
    """The status that says what was lacking."""
    return Why.NO_DESCRIPTOR if error.errno in (errno.EMFILE, errno.ENFILE) else Why.NO_MEMORY


class Registry:
    """Everything that is registered with this agent."""

    def __init__(self, directory: memory.Directory) -> None:
        self.directory = directory
        self.listeners = Listeners(directory)
        self._brief = Brief(directory)
        self.processes: set[Process] = set()
        self._bells: dict[int, Process] = {}
        self._share = int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * limits.DESCRIPTOR_SHARE)

    def greet(self, process: Process) -> None:
        """A process has come."""
        self.processes.add(process)

    def _check_share(self, process: Process, fd: int) -> None:
        """Raises Refused when a new descriptor is more than the user's share.  Descriptors are numbered from
        the lowest free one, so a small number says without counting that there are enough left."""
        uid = process.peer.uid
        if uid == 0 or fd < self._share:
            return
        held = sum(
            3 + 2 * len(p.links) + len(p.bells) + 3 * len(p.listeners)
            for p in self.processes
            if p.peer.uid == uid
        )
        if held >= self._share:
            raise Refused(Why.NO_DESCRIPTOR)

    # -- listeners ------------------------------------------------------------------------------------

    def listen(
        self, process: Process, where: Listening, route: socket.socket, diag: socket.socket, now: float
    ) -> tuple[Listener, int]:
        """Enters a listening socket; the listener and the implementations it offers, as bits.

        Takes the netlink sockets over, whatever happens.  Raises Refused or OSError.
        """
        # A worker that has changed its user may not be able to read the file; its owner's rules hold.
        lost = process.policy_error is not None and not self.listeners.joins(process, where)
        if lost or len(process.listeners) >= limits.LISTENERS_PER_PROCESS:
            route.close()
            diag.close()
            raise Refused(Why.POLICY_UNREAD if lost else Why.TABLE_FULL)
        try:
            self._check_share(process, max(route.fileno(), diag.fileno()))
        except Refused:
            route.close()
            diag.close()
            raise
        listener = self.listeners.register(process, where, route, diag, now)
        bits = 0
        for addr in listener.entries or [where.addr]:
            bits |= plans.offered(listener.policy, listener.subject, addr, where.port, where.proto)
        return listener, bits

    def unlisten(self, process: Process, number: int, now: float) -> None:
        """The process has closed its listening socket, or is about to."""
        listener = self.listeners.get(number)
        if listener is not None and process in listener.members:
            self.listeners.leave(process, listener, now)

    # -- links ----------------------------------------------------------------------------------------

    def connect(self, process: Process, wish: Connect) -> Link:
        """A new link from this process to a listener.  Raises Refused or OSError."""
        listener = self.listeners.get(wish.listener)
        if listener is None or not listener.listed or wish.server_addr not in listener.entries:
            raise Refused(Why.NOT_LISTED)
        if wish.server_port != listener.where.port:
            raise Refused(Why.NOT_LISTED)
        if addresses.is_loopback(wish.server_addr) and wish.netns != listener.where.netns:
            raise Refused(Why.NOT_LISTED)
        if not listener.members and self.listeners.drop_if_gone(listener):
            raise Refused(Why.NOT_LISTED)
        if listener.need == DagNeed.REQUIRED:  # its connections go through a carrier, or not at all
            raise Refused(Why.CHUNNEL_REFUSED)
        if len(process.links) >= limits.LINKS_PER_PROCESS or listener.next_index > _LINK_INDEX_MAX:
            raise Refused(Why.LINK_FULL)
        index = listener.next_index
        link = self._make_link(process, listener, index, wish)
        plan = link.plan
        try:
            self._check_share(process, link.fd)
            if plan.implementation == messages.IMPL_UNIX:
                link.open_mailbox()
        except (OSError, Refused):
            link.close()
            raise
        listener.next_index += 1
        listener.links[index] = link
        process.links[(listener.id, index)] = link
        return link

    def _make_link(self, process: Process, listener: Listener, index: int, wish: Connect) -> Link:
        """Memory for what is picked; where there is not enough for rings, for what needs none.

        Raises Refused or OSError."""

        elsewhere = wish.netns != listener.where.netns
        claimant = plans.claimant(process.peer.uid, listener.uid, elsewhere=elsewhere)

        def make(available: Collection[str]) -> Link:
            where = wish.server_addr, wish.server_port
            plan = plans.agree(
                process,
                listener.subject,
                listener.policy,
                listener.uid,
                *where,
                available=available,
                proto=listener.where.proto,
                elsewhere=elsewhere,
            )
            rings = plan.implementation == messages.IMPL_SHM
            fd = memory.make_link(listener.id, index, process.peer.pid, rings)
            link = Link(listener, index, process, fd, plan, claimant, (listener.where.proto, *where))
            if why := process.told.get(link.place):
                link.tell_left_out(why)
            return link

        possible = room.available(p.peer.pid for p in (process, *listener.members))
        try:
            return make(possible)
        except OSError as error:
            if "shm" not in possible or why_of(error) is Why.NO_DESCRIPTOR:
                raise
            return make(room.WITHOUT_RINGS)

    def link(self, process: Process, number: int, index: int) -> Link:
        """A link of a listener, for a process that serves it.  Raises Refused."""
        listener = self.listeners.get(number)
        link = listener.links.get(index) if listener is not None else None
        if listener is None or link is None:
            raise Refused(Why.NOT_LISTED)
        uid = process.peer.uid
        if uid not in (0, listener.uid):
            # A worker that has changed its user (nginx: the master listens as root) has proved by LISTEN
            # that it holds the socket, so the kernel's connection would give it these very bytes as well.
            if process not in listener.members:
                raise Refused(Why.OTHER_USER)
        link.servers.add(process)
        process.served.add(link)
        listener.servers.add(process)
        return link

    def unlink(self, process: Process, number: int, index: int) -> None:
        """The process has given up one of its links as a client.  Raises Refused."""
        link = process.links.pop((number, index), None)
        if link is None:
            raise Refused(Why.NOT_LISTED)
        self._end_link(link)

    def _end_link(self, link: Link) -> None:
        memory.mark_link_dead(link.fd)
        link.listener.links.pop(link.index, None)
        for server in link.servers:
            server.served.discard(link)
        link.close()
        self.listeners.forget_if_done(link.listener)

    def resolve(self, process: Process, question: Resolve) -> int:
        """Which of some listeners has the other half of a connection; 0: none, or not only one."""
        found = 0
        for number in question.listeners:
            listener = self.listeners.get(number)
            if listener is None or not listener.listed or listener.where.port != question.server_port:
                continue
            try:
                has = sockdiag.has_connection(
                    listener.space.diag,
                    question.server_addr,
                    question.server_port,
                    question.client_addr,
                    question.client_port,
                )
            except OSError:
                return 0  # not knowing about one is not knowing
            if has:
                if found:
                    return 0
                found = number
        return found

    # -- bells ----------------------------------------------------------------------------------------

    def bell_new(self, process: Process, fd: int) -> int:
        """Takes an eventfd over and gives it a number that cannot be guessed.  Raises Refused (and then the
        descriptor is still the caller's)."""
        if len(process.bells) >= limits.BELLS_PER_PROCESS:
            raise Refused(Why.TABLE_FULL)
        self._check_share(process, fd)
        number = 0
        while number == 0 or number in self._bells:
            number = secrets.randbits(32)
        self._bells[number] = process
        process.bells[number] = fd
        return number

    def bell_get(self, process: Process, number: int) -> int:
        """The eventfd of that number, which stays ours.  Raises Refused."""
        owner = self._bells.get(number)
        if owner is None or not (
            owner.peer.uid == process.peer.uid or process.peer.uid == 0 or _share_link(owner, process)
        ):
            raise Refused(Why.NOT_LISTED)
        return owner.bells[number]

    # -- going ----------------------------------------------------------------------------------------

    def end(self, process: Process, now: float, seconds: float = math.inf) -> None:
        """The process has ended, `seconds` after it came: so does everything that it had registered."""
        self.processes.discard(process)
        self._brief.ended(process, seconds)
        for listener in list(process.listeners):
            self.listeners.leave(process, listener, now)
        for link in list(process.links.values()):
            self._end_link(link)
        process.links.clear()
        for link in process.served:
            link.servers.discard(process)
        process.served.clear()
        self.listeners.server_ended(process)
        for number, fd in process.bells.items():
            del self._bells[number]
            os.close(fd)
        process.bells.clear()
        for memory_fd in (process.table_fd, process.carried_fd):
            if memory_fd >= 0:
                os.close(memory_fd)
        process.table_fd = process.carried_fd = -1


def _share_link(one: Process, other: Process) -> bool:
    return any(other in link.servers for link in one.links.values()) or any(
        one in link.servers for link in other.links.values()
    )
