"""From a plan's bytes to the pipes of one end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from bertha_socket.chunnels import NO_WIRE, ChunnelError, Context, Interface, Pipe, get, load_chunnel
from bertha_socket.chunnels._interfaces import misfit
from bertha_socket.chunnels._registry import BUILTIN
from bertha_socket.chunnels._types import ChunnelType
from bertha_socket.dag import Chunnel, Dag
from bertha_socket.negotiation.plan import Plan, PlannedChunnel

#: Where the chunnels of policy files are: name to "module:Class" or "/path.py:Class".
SOURCES: Final[dict[str, str]] = {}
#: Bytes of the log's text, and what it ends with when it is cut.
TEXT_MAX: Final = 615


@dataclass(frozen=True)
class Recipe:
    """What is to be made for one end of a plan."""

    plan: Plan
    side: str
    #: The plan's chunnels from `encrypt` on, where it is the last on the wire; else none.
    outer: tuple[PlannedChunnel, ...]
    inner: tuple[PlannedChunnel, ...]
    #: What the program gives and takes: a stream; a door for new programs may do more.
    top: Interface = Interface.STREAM
    #: What carries all of it.
    bottom: Interface = Interface.STREAM

    @property
    def tls_first(self) -> bool:
        """Whether the connection begins with TLS."""
        return bool(self.outer)

    @property
    def foreign(self) -> bool:
        """Whether code that is not ours (or that touches files) runs here: it gets a process of its own."""
        return any(_foreign(c) for c in self.plan.chunnels if c.implementation(self.side) is not None)

    def pipes(self, context: Context, first: Pipe | None = None) -> tuple[list[Pipe], list[Pipe]]:
        """The outer and the inner ones; `first` is the `encrypt` that runs already.

        Raises OSError: a chunnel that this end cannot run.
        """
        here = [c for c in self.plan.chunnels if c.implementation(self.side) is not None]
        types = [self._type(c) for c in here]
        above = {id(c): kind for c, kind in zip(here[1:], types, strict=False)}
        why = misfit(types, top=self.top, bottom=self.bottom)
        if why is not None:
            raise ChunnelError(why)
        outer: list[Pipe] = []
        for chunnel in self.outer:
            if not outer and first is not None:
                outer.append(first)
            else:
                outer += self._made(chunnel, context, above.get(id(chunnel)))
        inner = [p for chunnel in self.inner for p in self._made(chunnel, context, above.get(id(chunnel)))]
        return outer, inner

    @staticmethod
    def _type(chunnel: PlannedChunnel) -> ChunnelType:
        if chunnel.type in SOURCES:
            load_chunnel(SOURCES[chunnel.type], chunnel.type)
        return get(chunnel.type)

    def _made(self, chunnel: PlannedChunnel, context: Context, above: ChunnelType | None) -> list[Pipe]:
        name = chunnel.implementation(self.side)
        if name is None:
            return []
        kind = self._type(chunnel)
        found = kind.implementation(name, chunnel.wire, chunnel.kwargs)
        if found is None or found.make is None:
            raise ChunnelError(
                f"{chunnel.type}: there is no implementation in Python for {chunnel.wire} here"
            )
        args = dict(kind.bound(chunnel.kwargs))
        if kind.sub_dags:
            args["inner"] = chunnel.inner
        if kind.name == "reliable" and found.builtin:
            from bertha_socket.chunnels import reliable  # it is there; carriers without it need not load it

            args |= reliable.bounds(above, context.message_max)
        assert found.make is not None
        return [found.make(args, chunnel.wire, context.side, context)]


def _foreign(chunnel: PlannedChunnel) -> bool:
    # Others are not even imported here.
    if chunnel.type not in BUILTIN or chunnel.type in SOURCES:
        return True
    found = get(chunnel.type).implementation(None, chunnel.wire, chunnel.kwargs)
    if found is not None and not found.builtin:
        return True
    if any(_foreign(c) for c in chunnel.inner if c is not None):
        return True
    return any(_foreign_value(value) for value in chunnel.kwargs.values())


def _foreign_sub(chunnel: Chunnel) -> bool:
    if chunnel.type not in BUILTIN or chunnel.type in SOURCES:
        return True
    if not all(i.builtin for i in get(chunnel.type).implementations):
        return True
    return any(_foreign_value(v) for v in (*chunnel.args, *dict(chunnel.kwargs).values()))


def _foreign_value(value: Any) -> bool:
    """Whether a sub-DAG has such chunnels."""
    if isinstance(value, (list, tuple)):
        return any(_foreign_value(v) for v in value)
    if isinstance(value, Dag):
        return any(_foreign_sub(c) for c in value.chunnels)
    return False


def recipe_of(data: bytes, side: str) -> Recipe:
    """Raises NegotiationError: these bytes are no plan."""
    plan = Plan.decode(data)
    on_wire = [i for i, c in enumerate(plan.chunnels) if c.wire != NO_WIRE]
    first = on_wire[-1] if on_wire and plan.chunnels[on_wire[-1]].type == "encrypt" else len(plan.chunnels)
    return Recipe(plan, side, plan.chunnels[first:], plan.chunnels[:first])


def entries_of(plan: Plan, side: str) -> list[dict[str, str | None]]:
    """{type, implementation, where} of each chunnel: what both ends run, and where this one does ("client" or
    "server"; the other, where this one does not run it)."""
    entries = []
    for c in plan.chunnels:
        entry: dict[str, str | None] = {"type": c.type}
        if c.client == c.server:
            entry["implementation"] = c.client
        elif c.client is None or c.server is None:
            entry["implementation"] = c.client or c.server
        else:
            entry["implementation"] = f"{c.client}/{c.server}"
        entry["where"] = c.where(side) or c.client_where or c.server_where
        entries.append(entry)
    return entries


def log_text(plan: Plan, side: str, limit: int = TEXT_MAX) -> str:
    """A JSON array for that end's line in the connection log; without the last chunnels where it would be too
    long."""
    entries = entries_of(plan, side)
    while True:
        text = json.dumps(entries, separators=(",", ":"))
        if len(text.encode("utf-8")) <= limit or not entries:
            return text
        entries.pop()
