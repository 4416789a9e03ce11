"""Why a connection is plain TCP, or not on a better implementation.

The numbers are `enum bertha_reason` of native/core/layout.h; the texts are the `reason` of the connection
log and of `bertha ps`, and the same ones that native/core/reason.c holds for the shim (a test compares the
three).  A text is one ASCII sentence that needs no escaping in JSON and says, where there is one, the remedy.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Reason", "text_of"]


class Reason(IntEnum):
    """`enum bertha_reason`, without its prefix BERTHA_WHY_."""

    NONE = 0
    NO_AGENT = 1
    PEER_UNAWARE = 2
    NOT_LISTED = 3
    NOT_ATTACHED = 4
    REFUSED_BY_AGENT = 5
    POLICY = 6
    OTHER_USER = 7
    NO_MEMORY = 8
    NO_DESCRIPTOR = 9
    LINK_FULL = 10
    CLAIMS_FULL = 11
    TABLE_FULL = 12
    IO_URING = 13
    INHERITED = 14
    CORRUPT = 15
    AMBIGUOUS = 16
    KERNEL_ASKED = 17
    DISABLED = 18
    VERSION = 19
    FASTOPEN = 20
    PASSED_ON = 21
    SHM_PROHIBITED = 22
    NEVER_CONNECTED = 23
    CHUNNEL_REFUSED = 24
    NO_CARRIER = 25
    CHUNNEL_FAILED = 26
    BRIEF = 27
    AGENT_NEW = 28
    CHUNNEL_RAISED = 29
    SECCOMP = 30
    NO_RINGS = 31
    ALL_BY_UDP = 32
    POLICY_UNREAD = 33
    BRIEF_PROCESS = 34


_TEXTS: dict[int, str] = {
    Reason.NONE: "no reason: nothing better was possible",
    Reason.NO_AGENT: "no agent answered on this host: start one with 'bertha agent'",
    Reason.PEER_UNAWARE: "the peer did not ask for more: it is not under bertha-run, or chose plain TCP",
    Reason.NOT_LISTED: "no program under bertha-run is known to listen on this address on this host",
    Reason.NOT_ATTACHED: "the peer never tied its end of the connection to shared memory",
    Reason.REFUSED_BY_AGENT: "the agent refused: the listener is unconfirmed, or out of reach for the caller",
    Reason.POLICY: "a rule of the policy file chose this implementation",
    Reason.OTHER_USER: "the peer belongs to another user; only a system agent (run by root) may join the two",
    Reason.NO_MEMORY: "shared memory could not be made or mapped: a memory limit is reached",
    Reason.NO_DESCRIPTOR: "no file descriptor was left: raise the limit with 'ulimit -n'",
    Reason.LINK_FULL: "all slots between this process and this listener are taken",
    Reason.CLAIMS_FULL: "the listener's table of waiting connections is full",
    Reason.TABLE_FULL: "this process's table of connections is full",
    Reason.IO_URING: "the program uses io_uring, whose operations cannot be seen from outside the kernel",
    Reason.INHERITED: "the connection was handed to another program before it was tied to shared memory",
    Reason.CORRUPT: "the peer wrote something impossible into shared memory",
    Reason.AMBIGUOUS: "several listeners have this address and the right one could not be told",
    Reason.KERNEL_ASKED: "the program made a call that only the kernel can serve on this connection",
    Reason.DISABLED: "BERTHA_DISABLE is set",
    Reason.VERSION: "the two ends, or a program and its agent, have different versions of bertha-socket",
    Reason.FASTOPEN: "the program sent data with the connection request (TCP Fast Open)",
    Reason.PASSED_ON: "the descriptor was passed to another process, which may know nothing but TCP",
    Reason.SHM_PROHIBITED: "a rule of the policy file prohibits shared memory",
    Reason.NEVER_CONNECTED: "the connection was never established",
    Reason.CHUNNEL_REFUSED: "a required chunnel cannot be had with this peer",
    Reason.NO_CARRIER: "no carrier process could be started for the chunnels of this connection",
    Reason.CHUNNEL_FAILED: "a chunnel of this connection failed: its bytes were altered or cut off",
    Reason.BRIEF: "connections to this listener end after one exchange: plain TCP sets up faster",
    Reason.BRIEF_PROCESS: (
        "processes called like this one end after one exchange with this listener: plain TCP sets up faster"
    ),
    Reason.AGENT_NEW: "the agent was started after this listener, and did not know of it yet",
    Reason.CHUNNEL_RAISED: "a chunnel's own code failed",
    Reason.SECCOMP: "the program has installed a seccomp filter, which may forbid the shim's own calls",
    Reason.NO_RINGS: "the carrier of its chunnels has no rings here, and is reached by unix sockets",
    Reason.ALL_BY_UDP: "none went by memory: the peer is not under bertha-run, or slept at each datagram",
    Reason.POLICY_UNREAD: "the agent cannot use the policy file: it is not there for it, wrong, or too slow",
}


def text_of(reason: int) -> str:
    """The sentence for a number of `enum bertha_reason`; an unknown number gets a sentence that names it."""
    return _TEXTS.get(reason) or f"unknown reason {reason}: the shim is newer than this package"
