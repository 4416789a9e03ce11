"""What servers' ends cannot know by themselves: why a client came plainly where chunnels are preferred.

Such a client brings no plan that could say so.  The agent, which has answered for the listener, tells the
carriers beforehand, and they put it into the connection log.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgpack

from bertha_socket.agent.model import Listener
from bertha_socket.negotiation._codec import printable
from bertha_socket.negotiation.choose import without_a_plan
from bertha_socket.negotiation.offer import Offer
from bertha_socket.negotiation.plan import LEFT_OUT_MAX, Plan

#: Of who knows of no chunnels.
NO_PLAN: Final = "the client came without a plan"
#: As many as a carrier keeps (carrier/session.h).
_MOST: Final = 512


class Omission(NamedTuple):
    """Why clients of a host are without a listener's chunnels."""

    listener: int
    #: Its address; b"": everybody of whom nothing else is known.
    host: bytes
    #: One line; "": no reason any more.
    why: str
    #: Whose listener it is.
    uid: int

    def encode(self) -> bytes:
        """For a carrier."""
        message = {"op": "plain", "listener": self.listener, "host": self.host, "why": self.why}
        data: bytes = msgpack.packb(message)
        return data


class Omissions:
    """All of one agent's."""

    def __init__(self) -> None:
        #: Tells the carriers.
        self.changed: Callable[[Omission], None] = lambda omission: None
        self._known: OrderedDict[tuple[int, bytes], Omission] = OrderedDict()

    def __iter__(self) -> Iterator[Omission]:
        """What a carrier is told when it starts."""
        return iter(list(self._known.values()))

    def settled(self, listener: Listener, offers: list[Offer]) -> None:
        """A listener offers this, under its addresses, to who knows of no chunnels as well."""
        said = (without_a_plan(offer, "server", NO_PLAN).left_out for offer in offers)
        self._note(Omission(listener.id, b"", next(filter(None, said), ""), listener.uid))

    def answered(self, listener: Listener, host: bytes, plan: Plan) -> None:
        """A client of that host has this plan for the listener."""
        place = listener.id, host
        if place in self._known or (not plan.chunnels and plan.omitted):
            # Others of that host may never have asked.
            why = printable(f"{plan.left_out} (as was last agreed with its host)", LEFT_OUT_MAX)
            why = "" if plan.chunnels or not plan.omitted else why
            self._note(Omission(*place, why, listener.uid))

    def drop(self, number: int) -> None:
        """That listener is no more."""
        for place, omission in list(self._known.items()):
            if place[0] == number:
                self._note(omission._replace(why=""))

    def _note(self, omission: Omission) -> None:
        place = omission.listener, omission.host
        before = self._known.pop(place, None)
        if omission.why:
            self._known[place] = omission
        if len(self._known) > _MOST:
            # Anybody may ask; what is said of everybody stays.
            oldest = next((p for p in self._known if p[1]), next(iter(self._known)))
            self.changed(self._known.pop(oldest)._replace(why=""))
        if omission.why != (before.why if before is not None else ""):
            self.changed(omission)
