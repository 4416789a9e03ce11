"""What this host would use for the chunnels of a rule, for `bertha explain`: its own side, asking nobody."""

from __future__ import annotations

from typing import Any, NamedTuple

from bertha_socket import policy
from bertha_socket._bottom import BOTTOM
from bertha_socket.agent.authors import NOTHING, Brought
from bertha_socket.agent.offers import chunnel_rules
from bertha_socket.agent.secrets import named_files
from bertha_socket.chunnels import ChunnelArgumentError, ChunnelType, UnknownChunnel, type_of
from bertha_socket.cli.chunnels import why_not
from bertha_socket.dag import Chunnel, parse
from bertha_socket.negotiation._inner import sub_chunnels
from bertha_socket.negotiation.offer import named_args
from bertha_socket.negotiation.plan import near_enough
from bertha_socket.negotiation.rules import Rules

__all__ = ["Here", "chunnels_of"]


class Here(NamedTuple):
    """What there is on this host, beyond what is installed."""

    #: Chunnels that the policy file brings.
    brought: Brought = NOTHING
    #: Why there is no cluster key; None: there is one.
    why_no_key: str | None = None
    proto: str = "tcp"


def chunnels_of(rule: policy.Rule, here: Here) -> list[dict[str, Any]]:
    """Each chunnel of the rule's DAG: the implementation that would be offered first, and why no other."""
    dag = parse(rule.dag)
    if named_files(dag):  # its own certificates: no key is needed
        here = here._replace(why_no_key=None)
    return [_chunnel(chunnel, chunnel_rules(rule), here) for chunnel in dag.chunnels]


def _kind(chunnel: Chunnel, brought: Brought) -> ChunnelType:
    for name, problem in brought.errors:
        if name == chunnel.type:
            raise ChunnelArgumentError(f"{name}: {problem}", chunnel.column)
    own = next((t for t in brought.types if t.name == chunnel.type), None)
    kind = own if own is not None else type_of(chunnel)
    kind.bind(chunnel)
    return kind


def _chunnel(chunnel: Chunnel, rules: Rules, here: Here, carrier: str | None = None) -> dict[str, Any]:
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
    try:
        kind = _kind(chunnel, here.brought)
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
        elif why is None and chunnel.type == "encrypt" and here.why_no_key is not None:
            why = here.why_no_key
        elif why is None and not i.carries(here.proto):
            why = "the native carrier has it for connections alone"
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
            found["inner"].append({"in": place, **_chunnel(sub, rules, here, within)})
    return found
