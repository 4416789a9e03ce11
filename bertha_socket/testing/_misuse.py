"""Checks of what a chunnel does when it is used wrongly: it may raise, drop or pass on what it should not
have got, but it makes nothing else of it, and what was sent properly is not hurt.

A caller's mistake is no stranger's bytes: any exception is right here, not only ChunnelError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from bertha_socket.chunnels import Interface
from bertha_socket.testing._duplex import SIDES, Duplex, other

if TYPE_CHECKING:
    from bertha_socket.testing._checks import Check

__all__ = ["received_after_the_end", "sent_after_the_end", "wrong_types"]


class Unpicklable:
    """An object of no codec's."""


def _text(items: list[Any]) -> str:
    shown = repr(items)
    return shown if len(shown) <= 200 else shown[:200] + "..."


def _goes_on(call: Callable[[], None]) -> bool:
    """False: it raised, and the connection is over."""
    try:
        call()
    except Exception:
        return False
    return True


def _judge(check: Check, got: list[Any], proper: list[Any], late: Any, whole: bool, what: str) -> None:
    """`got` is what was sent properly (a beginning of it, unless `whole`), and then perhaps `late` itself."""
    if check.same(proper, got) or check.same([*proper, late], got):
        return
    if not whole and check.begins(proper, got):
        return
    from bertha_socket.testing._checks import ChunnelFault

    raise ChunnelFault(f"{what}: {check.told(proper, got)}")


def sent_after_the_end(check: Check) -> None:
    """`down` after `down_end` raises, or gives the item or nothing; what came before it arrives."""
    for side in SIDES:
        for moment in (0, 50):
            duplex = check.duplex()
            proper, late = check.item(200), check.item(9)
            duplex.send_all(side, [proper])
            duplex.end(side)
            for _ in range(moment):
                duplex.step()
            whole = _goes_on(lambda d=duplex, s=side, i=late: d.send(s, i))  # type: ignore[misc]
            whole = _goes_on(duplex.settle) and whole
            what = f"what the {side} sent after its end became something else"
            _judge(check, duplex.got[other(side)], [proper], late, whole, what)
            duplex.close()


def received_after_the_end(check: Check) -> None:
    """`up` after the end has come up raises, or gives the bytes or nothing: no second beginning.

    After the network's own end no chunnel is called: `Pipeline.up` raises.
    """
    if check.lower is Interface.DATAGRAMS:
        return  # they have no end, and come late by nature
    for side in SIDES:
        duplex = check.duplex()
        proper = check.item(200)
        duplex.settle(1.0)
        start = len(duplex.sent[side])
        duplex.send_all(side, [proper])
        duplex.end(side)
        target = other(side)
        duplex.run(lambda d=duplex, t=target: d.ended[t], "the end does not come")  # type: ignore[misc]
        for again in (b"".join(duplex.sent[side][start:]), check.random.randbytes(100)):
            if not again or not _goes_on(lambda d=duplex, t=target, a=again: d.inject(t, a)):  # type: ignore[misc]
                break
            what = f"bytes after the end came up at the {target} as something else"
            _judge(check, duplex.got[target], [proper], again, True, what)
            del duplex.got[target][1:]
            duplex.got[target][:1] = [proper]
        duplex.close()


def _wrong_items(upper: Interface) -> list[Any]:
    if upper is Interface.OBJECTS:
        return [Unpicklable(), lambda: None, {1, 2}, 1j]
    return [5, "text", None, 1.5, [1, 2], {"a": 1}, Unpicklable()]


def _same(sent: Any, got: Any) -> bool:
    return type(sent) is type(got) and bool(sent == got)


def _other_end(check: Check, item: Any) -> tuple[list[Any], bool, Duplex]:
    """What comes of it after something proper, and whether nothing was raised."""
    duplex = check.duplex(0.0)
    duplex.send_all("client", [b"proper" if check.upper is not Interface.OBJECTS else {"a": 1}])
    duplex.settle()
    del duplex.got["server"][:]
    quiet = _goes_on(lambda: duplex.send("client", item))
    quiet = _goes_on(duplex.settle) and quiet
    return duplex.got["server"], quiet, duplex


def wrong_types(check: Check) -> None:
    """An item that is none raises, or arrives as it is: a number does not become so many zeros.

    What is like bytes (bytearray, memoryview) raises, or arrives as the same bytes.
    """
    from bertha_socket.testing._checks import ChunnelFault

    for item in _wrong_items(check.upper):
        got, _, duplex = _other_end(check, item)
        if got and not (len(got) == 1 and _same(item, got[0])):
            raise ChunnelFault(f"{type(item).__name__} that was sent became {_text(got)}")
        duplex.close()
    if check.upper is Interface.OBJECTS:
        return
    for make in (bytearray, memoryview):
        got, quiet, duplex = _other_end(check, make(b"like bytes"))
        if (quiet or got) and b"".join(bytes(i) for i in got) != b"like bytes":
            raise ChunnelFault(f"{make.__name__} that was sent became {_text(got)}")
        duplex.close()


MISUSE: Final = (sent_after_the_end, received_after_the_end, wrong_types)
