"""The right end of a DAG: what carries the bytes.

`local_or_remote()`, `tcp()` and `udp()` are written like chunnels, and are the business of the kernel and the
shim: they are not negotiated with the others, but are wishes about the implementations of `local_or_remote`.
Whoever reads a DAG (a policy file, `new`) checks it here, so that none says something that nobody does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bertha_socket.dag import Chunnel, Dag, Need
from bertha_socket.negotiation.pick import IMPLEMENTATIONS, Wishes

#: Chunnel types that name the carrier of bytes.
BOTTOM: Final = frozenset({"local_or_remote", "tcp", "udp"})


def upper(dag: Dag) -> tuple[Chunnel, ...]:
    """The chunnels above it."""
    return tuple(c for c in dag.chunnels if c.type not in BOTTOM)


def check(dag: Dag, proto: str) -> None:
    """Whether the DAG says what carries the bytes where it can be said.  `proto`: "tcp", "udp" or "any".

    Raises DagError, with the column if the DAG comes from a text.
    """
    for i, chunnel in enumerate(dag.chunnels):
        if chunnel.type in BOTTOM:
            _check_one(chunnel, proto, last=i == len(dag.chunnels) - 1)
        for inner in _within(chunnel):
            if inner.type in BOTTOM:
                raise inner.error(
                    f"{inner.type}() within {chunnel.type}: all branches go on to what is to the right of "
                    f"{chunnel.type}; write {inner.type}() last of all"
                )


def _check_one(chunnel: Chunnel, proto: str, *, last: bool) -> None:
    name = f"{chunnel.type}()"
    if not last:
        raise chunnel.error(f"{name} carries the bytes, so nothing goes below it; write it last")
    if chunnel.args or chunnel.kwargs:
        raise chunnel.error(f"{chunnel.type} takes no arguments; write {name}")
    if chunnel.scope is not None:
        raise chunnel.error(f"{name} has no scope: the kernel runs it; write it behind the parentheses")
    if chunnel.need in (Need.AVOID, Need.PROHIBIT):
        lists = 'implementations are ruled out by a rule\'s lists, as in prohibit = ["shm"]'
        raise chunnel.error(
            f"{chunnel.need.value} {name}: something has to carry the bytes; leave it out ({lists})"
        )
    if chunnel.type != "local_or_remote" and chunnel.type != proto:
        what = {"tcp": "TCP connections", "udp": "UDP datagrams"}.get(proto, "TCP and UDP")
        rule = f'a rule with proto = "{chunnel.type}" is about'
        kind = {"tcp": "connections", "udp": "datagrams"}[chunnel.type]
        raise chunnel.error(f"{name} cannot carry {what}; leave it out ({rule} {kind})")


def _within(value: object) -> Iterator[Chunnel]:
    """The chunnels of the DAGs among a chunnel's arguments, however deep."""
    if isinstance(value, Chunnel):
        for argument in (*value.args, *(v for _name, v in value.kwargs)):
            yield from _within(argument)
    elif isinstance(value, Dag):
        for chunnel in value.chunnels:
            yield chunnel
            yield from _within(chunnel)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _within(item)


def need_of_tcp(dag: Dag | None) -> Need | None:
    """How much the DAG wants the kernel's TCP; None: it says nothing about it."""
    return next((c.need for c in dag.chunnels if c.type == "tcp"), None) if dag is not None else None


def proto_of(dag: Dag) -> str | None:
    """What an endpoint's DAG is about: "udp" (`udp()` at its right end, or `reliable()` in it), "tcp" (any
    other chunnel); None: it says nothing of it."""
    for chunnel in dag.chunnels:
        if chunnel.type in ("udp", "reliable") and chunnel.need in (Need.REQUIRE, Need.PREFER):
            return "udp"
    return "tcp" if upper(dag) or need_of_tcp(dag) is not None else None


def wished(dag: Dag | None, wishes: Wishes) -> Wishes:
    """A rule's wishes together with what its DAG says."""
    need = need_of_tcp(dag)
    if need is Need.REQUIRE:
        others = tuple(i for i in wishes.require if i not in IMPLEMENTATIONS)
        return wishes._replace(require=(*others, "tcp"))
    if need is Need.PREFER:
        return wishes._replace(prefer=("tcp", *(i for i in wishes.prefer if i != "tcp")))
    return wishes


def contradiction(dag: Dag, wishes: Wishes) -> str | None:
    """The list of a rule, if there is one, that does not go with the DAG's `tcp()`."""
    need = need_of_tcp(dag)
    if need is None:
        return None
    required = [i for i in wishes.require if i in IMPLEMENTATIONS]
    if required and "tcp" not in required:
        return "require"
    return next((kind for kind in ("prohibit", "avoid") if "tcp" in getattr(wishes, kind)), None)
