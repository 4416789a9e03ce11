"""What this host would use for the chunnels of a rule, for `bertha explain`: its own side, asking nobody."""

from __future__ import annotations

from typing import Any

from bertha_socket import policy
from bertha_socket._bottom import BOTTOM
from bertha_socket.agent.offers import chunnel_rules
from bertha_socket.chunnels import ChunnelArgumentError, UnknownChunnel, type_of
from bertha_socket.cli.chunnels import why_not
from bertha_socket.dag import Chunnel, parse
from bertha_socket.negotiation._inner import sub_chunnels
from bertha_socket.negotiation.offer import named_args
from bertha_socket.negotiation.plan import near_enough
from bertha_socket.negotiation.rules import Rules

__all__ = ["chunnels_of"]


def chunnels_of(rule: policy.Rule, sources: frozenset[str]) -> list[dict[str, Any]]:
    """Each chunnel of the rule's DAG: the implementation that would be offered first, and why no other."""
    return [_chunnel(chunnel, chunnel_rules(rule), sources) for chunnel in parse(rule.dag).chunnels]


def _chunnel(
    chunnel: Chunnel, rules: Rules, sources: frozenset[str], carrier: str | None = None
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": chunnel.type,
        "need": chunnel.need.value,
        "scope": chunnel.scope.value if chunnel.scope is not None else None,
        "implementation": None,
        "after": {},
        "not": {},
        "problem": None,
        "inner": [],
    }
    if chunnel.type in sources:
        return found | {"problem": "the policy file brings it; it is loaded when it is needed"}
    try:
        kind = type_of(chunnel)
        kind.bind(chunnel)
    except (UnknownChunnel, ChunnelArgumentError) as error:
        return found | {"problem": error.strerror or str(error)}
    if chunnel.type in BOTTOM:
        return found | {"implementation": "see pick"}
    about = rules.about(chunnel.type)
    able = []
    for i in kind.implementations:
        why = why_not(i)
        if about.prohibits(i.name):
            why = "the rule prohibits it"
        elif about.lacks(i.name):
            why = "the rule requires another"
        elif carrier not in (None, i.carrier):
            why = f"it does not run in the {carrier} carrier, which runs what is around it"
        elif not near_enough(chunnel.scope, i.where):
            why = f"it runs on the {i.where}, beyond @{found['scope']}"
        if why is None:
            able.append(i)
        else:
            found["not"][i.name] = why
    able.sort(key=lambda i: (about.rank(i.name), -rules.priority(chunnel.type, i.name, i.priority), i.name))
    if able:
        found["implementation"] = able[0].name
        numbers = {i.name: rules.priority(chunnel.type, i.name, i.priority) for i in able}
        for i in able[1:]:
            if about.rank(i.name) != about.rank(able[0].name):
                found["after"][i.name] = "the rule orders them so"
            else:
                found["after"][i.name] = f"priority {numbers[i.name]}, not {numbers[able[0].name]}"
    if kind.sub_dags:
        given = tuple(sorted(named_args(chunnel, kind).items()))
        within = able[0].carrier if able else None
        for place, sub in sub_chunnels(given):
            found["inner"].append({"in": place, **_chunnel(sub, rules, sources, within)})
    return found
