"""Whether chunnels fit together: what one gives below must be what the next takes above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bertha_socket.chunnels._types import ChunnelType, Interface

#: (what comes from above, what is taken) that go together: a piece of a stream may become a message, as long
#: as messages do not become a stream.
_FITS: Final = frozenset(
    {(i, i) for i in Interface}
    | {
        (Interface.STREAM, Interface.MESSAGES),
        (Interface.MESSAGES, Interface.DATAGRAMS),
        (Interface.DATAGRAMS, Interface.MESSAGES),
    }
)
_REMEDY: Final = {
    (Interface.MESSAGES, Interface.STREAM): "put frame() between them",
    (Interface.OBJECTS, Interface.STREAM): "put serialize() between them",
    (Interface.OBJECTS, Interface.MESSAGES): "put serialize() between them",
    (Interface.DATAGRAMS, Interface.STREAM): 'it is for datagrams: a rule with proto = "udp"',
    (Interface.STREAM, Interface.OBJECTS): "use it from a program that sends objects (bertha_socket.new)",
    (Interface.STREAM, Interface.DATAGRAMS): "put reliable() between them",
}


def misfit(
    types: Sequence[ChunnelType],
    top: Interface = Interface.STREAM,
    bottom: Interface = Interface.STREAM,
) -> str | None:
    """Why these chunnels, the application's first, do not fit between `top` and `bottom`; None: they do."""
    above, name = top, "the program"
    for kind in types:
        if kind.transparent:
            continue
        if (above, kind.upper) not in _FITS:
            return _told(name, above, kind.name, kind.upper)
        above, name = kind.lower, kind.name
    if (above, bottom) not in _FITS:
        return _told(name, above, "the network", bottom)
    return None


def interface_of(types: Sequence[ChunnelType], bottom: Interface = Interface.STREAM) -> Interface:
    """What the application gives and takes above these chunnels."""
    return next((t.upper for t in types if not t.transparent), bottom)


def _told(upper: str, gives: Interface, lower: str, takes: Interface) -> str:
    line = f"{upper} gives {_words(gives)} and {lower} takes {_words(takes)}"
    remedy = _REMEDY.get((gives, takes))
    return f"{line}; {remedy}" if remedy else line


def _words(interface: Interface) -> str:
    return "a stream of bytes" if interface is Interface.STREAM else interface.value


def misfit_over_udp(types: Sequence[ChunnelType]) -> str | None:
    """The same for programs that send datagrams."""
    why = misfit(types, Interface.DATAGRAMS, Interface.DATAGRAMS) if types else None
    if why is None:
        return None
    return f"over UDP: {why.partition(';')[0]}; what needs a stream goes between frame() and reliable()"
