"""How long what was found out is believed where it is no plan: that a host has no agent, or no such listener.

Who is plain by it must not pay for looking again and again, so that is done behind his back: the answer is
the one of before, and the question is put once more for the next one who asks.  After as long again as the
other side has been silent, so that an agent that was away for seconds is found within seconds, and one that
never was there is left alone.  Who requires something is not answered from such a memory but for a moment.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from bertha_socket.agent.kept import Via

#: Seconds.  A required chunnel's question is put again after that.
REFUSED_SECONDS: Final = 1.0
#: When a first answer of that kind is doubted.
_FIRST_SECONDS: Final = 1.0
#: As long as a question takes at the most.
_ASKING_SECONDS: Final = 2.0
_HOSTS_MAX: Final = 4096

#: A network namespace, an address as it is reached from there, and by whose sockets.
Host = tuple[int, bytes, Via | None]


class Belief(NamedTuple):
    """Monotonic seconds."""

    since: float
    #: From then on it is still the answer, but the question is put again.
    doubt: float
    #: Forgotten.
    until: float

    def holds(self, now: float, *, required: bool = False) -> bool:
        """Whether it is an answer, for one who requires something or does not."""
        return now < (min(self.since + REFUSED_SECONDS, self.until) if required else self.until)


def believe(now: float, most: float, before: Belief | None = None) -> Belief:
    """What was found out now, for `most` seconds; `before`: and the last time that was asked."""
    span = _FIRST_SECONDS if before is None else 2 * (before.doubt - before.since)
    return Belief(now, now + min(span, most), now + most)


class Silence(NamedTuple):
    """A host whose agent has not answered."""

    why: str
    belief: Belief
    #: It has been heard of in vain before: it speaks, and does not answer.
    heard: bool = False


class Silences:
    """The hosts without an agent."""

    def __init__(self) -> None:
        self._hosts: OrderedDict[Host, Silence] = OrderedDict()

    def note(self, host: Host, why: str, now: float, most: float) -> Silence:
        """It did not answer."""
        before = self._hosts.get(host)
        belief = believe(now, most, None if before is None else before.belief)
        found = Silence(why, belief, before is not None and before.heard)
        self._hosts[host] = found
        self._hosts.move_to_end(host)
        while len(self._hosts) > _HOSTS_MAX:
            self._hosts.popitem(last=False)
        return found

    def look(self, host: Host, now: float, *, required: bool) -> Silence | None:
        """What is believed of that host; None: it is to be asked."""
        found = self._hosts.get(host)
        return found if found is not None and found.belief.holds(now, required=required) else None

    def asked(self, host: Host, now: float) -> None:
        """It is being asked: whoever comes meanwhile need not ask as well."""
        found = self._hosts.get(host)
        if found is not None:
            self._hosts[host] = found._replace(belief=found.belief._replace(doubt=now + _ASKING_SECONDS))

    def answered(self, host: Host) -> bool:
        """It has answered.  Whether that is news."""
        return self._hosts.pop(host, None) is not None

    def heard(self, netns: int, addr: bytes) -> bool:
        """An agent there has asked us something, so that ours may be answered.  Whether that is news."""
        news = False
        for host, found in self._hosts.items():
            if host[:2] == (netns, addr) and not found.heard:
                belief = found.belief._replace(until=found.belief.since)
                self._hosts[host] = Silence(found.why, belief, heard=True)
                news = True
        return news

    def believed(self, now: float) -> list[tuple[Host, Silence]]:
        """For STATUS."""
        return [(host, found) for host, found in self._hosts.items() if found.belief.holds(now)]
