"""Chunnels within chunnels: the sub-DAGs among a chunnel's arguments, in one order that both ends know.

Only for types that say so (`sub_dags`), such as `branch`: what they run of each is in the plan beside them,
by position.  A position whose chunnel is not run (left out, or named only to be avoided) holds None.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bertha_socket.dag import Chunnel, Dag, Need
from bertha_socket.negotiation._codec import Args

#: Chunnels of all sub-DAGs of one chunnel, and sub-DAGs within sub-DAGs: a DAG's text has no more.
INNER_MAX: Final = 128
DEPTH_MAX: Final = 8


def sub_chunnels(args: Args) -> tuple[tuple[str, Chunnel], ...]:
    """Where each is ("choices[1]"), and the chunnel.  `args` are sorted, as offers and plans have them."""
    return tuple(found for name, value in args for found in _within(name, value))


def _within(place: str, value: object) -> Iterator[tuple[str, Chunnel]]:
    if isinstance(value, Dag):
        for chunnel in value.chunnels:
            yield place, chunnel
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _within(f"{place}[{i}]", item)


def wanted(chunnel: Chunnel) -> bool:
    """Whether it is asked for, rather than against."""
    return chunnel.need in (Need.REQUIRE, Need.PREFER)
