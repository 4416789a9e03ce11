"""What a connection consists of in `setup_protocol`: two sides, a slot, the kernel's queues; and what to
explore."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter

CLIENT, SERVER = 0, 1
FREE, CLAIMED, ATTACHED = "free", "claimed", "attached"
BEFORE, RING, AFTER = "before", "ring", "after"
NEVER = -1
BELL = -1  # a token in the kernel's queue; data bytes are 0, 1, 2...

State = tuple[object, ...]


@dataclass(slots=True)
class Half:
    """A side: its process, and the direction that it produces."""

    life: str = "new"  # new, up, closed, dead
    kind: str = "none"  # none, plain, claimed (client), maybe (server), shm
    op: str = "idle"
    hand: tuple[int, ...] = ()  # tokens just read from the kernel, not yet judged
    sent: int = 0
    got: int = 0
    end: str = ""  # what the reader was told at last: eof, reset
    broken: bool = False  # a send was refused
    shut: bool = False
    tx: str = BEFORE
    rx: str = BEFORE
    ktx: int = 0
    krx: int = 0
    seen: int = 0  # bell bytes taken off
    debt: int = 0
    # shared memory, written by this side's producer (head, bell_out: by its consumer too)
    switch_at: int = NEVER
    ring: tuple[int, ...] = ()
    tail: int = 0
    head: int = 0
    ring_end: int = NEVER
    bell_out: int = 0
    bells: int = 0
    done: bool = False
    # the kernel's queue towards the other side, and what follows it
    queue: tuple[int, ...] = ()
    fin: bool = False
    rst: bool = False


_half = attrgetter(*Half.__slots__)


@dataclass(slots=True)
class World:
    """Both sides and what belongs to neither."""

    slot: str = FREE
    hint: bool = False
    agent: bool = True
    deaths: int = 0
    side: list[Half] = field(default_factory=lambda: [Half(), Half()])

    def freeze(self) -> State:
        return (self.slot, self.hint, self.agent, self.deaths, _half(self.side[0]), _half(self.side[1]))


def thaw(state: State) -> World:
    """The inverse of freeze."""
    slot, hint, agent, deaths, client, server = state
    return World(slot, hint, agent, deaths, [Half(*client), Half(*server)])  # type: ignore[arg-type,misc]


@dataclass(frozen=True)
class Rules:
    """What to explore, and which rule to break (`without`, for the tests of the model itself).

    without: switch-first (switch_at is stored after the bell of
    the first ring byte), bell (no byte on the kernel's connection), first-bell (none before the client has
    seen the tie), skip-after (bells are not skipped after ring_end), ring-before-fin (the end of the stream
    is reported before the ring is looked at), peek (bytes are taken from the kernel before it is known
    whether they are data), probe (no byte to find out whether a half-closed peer is alive), farewell (bells
    are not settled at close), announce (they are settled as far as they can be seen, but new ones may
    come), look-late (a sender takes bell bytes off although its own reading has not come to the ring yet).
    """

    client_bytes: int = 1
    server_bytes: int = 1
    ring_size: int = 1
    client_aware: bool = True
    server_aware: bool = True
    deaths: int = 0  # how many of the two may die
    agent_dies: bool = False
    fall_back: bool = False
    early_close: bool = False  # the client may close at any time
    eventfd: bool = False  # once both see the tie, sleepers are woken without a byte on the connection
    counted: bool = False  # the server knows how much will come, and closes without waiting for the end
    without: frozenset[str] = frozenset()
