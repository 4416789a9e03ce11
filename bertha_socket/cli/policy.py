"""`bertha policy check FILE`: whether a policy file makes sense, before it is put in force.

Beyond what every reader of the file checks (keys, values, the text of DAGs), it looks at the chunnels
themselves: whether their types exist here, take those arguments, and fit one another.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
from collections.abc import Iterator, Sequence

from bertha_socket import keys, policy
from bertha_socket._bottom import BOTTOM
from bertha_socket._settings import NO_SETTINGS, why_not_ours
from bertha_socket.agent.secrets import named_files
from bertha_socket.chunnels import ChunnelArgumentError, ChunnelType, UnknownChunnel, type_of
from bertha_socket.chunnels._interfaces import misfit, misfit_over_udp
from bertha_socket.dag import Chunnel, Dag, Need, parse

__all__ = ["main", "problems"]


def _misfits(types: Sequence[ChunnelType], proto: str) -> Iterator[str]:
    """Why they cannot be between a program and what carries its bytes, for each protocol of the rule."""
    if proto in ("tcp", "any") and (why := misfit(types)) is not None:
        yield why
    if proto in ("udp", "any") and types:
        if (why := misfit_over_udp(types)) is not None:
            yield why
        for kind in types:
            if not any(i.carrier == "python" for i in kind.implementations):
                yield f"over UDP: {kind.name} has no implementation for datagrams"


def _wrong(dag: Dag, sources: frozenset[str], proto: str) -> Iterator[str]:
    """What is wrong with a DAG here; what a file brings itself is not loaded, for that would run it."""
    types: list[ChunnelType] = []
    complete = True
    for chunnel in dag.chunnels:
        if chunnel.type in sources:
            complete = False
            continue
        try:
            kind = type_of(chunnel)
            kind.bind(chunnel)
        except (UnknownChunnel, ChunnelArgumentError) as error:
            yield error.strerror or str(error)
            complete = False
        else:
            if chunnel.need in (Need.REQUIRE, Need.PREFER) and chunnel.type not in BOTTOM:
                types.append(kind)
        for value in (*chunnel.args, *(v for _name, v in chunnel.kwargs)):
            yield from _within(value, sources)
    if complete:
        yield from _misfits(types, proto)


def _within(value: object, sources: frozenset[str]) -> Iterator[str]:
    """What is wrong with the types in sub-DAGs; whether they fit is their branch's business."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _within(item, sources)
    elif isinstance(value, Dag):
        for chunnel in value.chunnels:
            if chunnel.type not in sources:
                try:
                    type_of(chunnel)
                except UnknownChunnel as error:
                    yield error.strerror or str(error)
            for inner in (*chunnel.args, *(v for _name, v in chunnel.kwargs)):
                yield from _within(inner, sources)


def problems(rules: policy.Policy) -> list[str]:
    """One line for each thing that cannot work, with file and rule."""
    sources = frozenset(rules.sources)
    found = [
        f"{rules.path}: rule {number}, dag: {why}"
        for number, rule in enumerate(rules.rules, 1)
        for why in _wrong(parse(rule.dag), sources, rule.proto)
    ]
    return found + [f"{rules.path}: {why}" for why in _settings_problems(rules)]


def _settings_problems(rules: policy.Policy) -> Iterator[str]:
    """What an agent that goes by this file would refuse; no code of the operator's is run for it."""
    settings = rules.settings
    if settings != NO_SETTINGS and os.path.isfile(rules.path):
        if (why := why_not_ours(rules.path)) is not None:
            yield f"[agent] and [cluster] are not believed: {why}"
    if settings.key is not None:
        try:
            keys.load(settings.key)
        except keys.KeyFileError as error:
            yield f"[cluster], key: {error.strerror}"
    place, _, name = (settings.choose or "").rpartition(":")
    if place.endswith(".py"):
        try:
            why = why_not_ours(place)
            with open(place, "rb") as file:
                tree = ast.parse(file.read(), place)
            if why is None and not any(_binds(node, name) for node in tree.body):
                why = f"it has no function {name!r}"
        except (OSError, SyntaxError, ValueError) as error:
            why = getattr(error, "strerror", None) or " ".join(str(error).split())
        if why is not None:
            yield f"[agent], choose: {place}: {why}"


def warnings(rules: policy.Policy) -> list[str]:
    """One line for each rule with a chunnel that needs a key that is not there; another host may have it."""
    if rules.settings.key is not None:  # whether that file is good is among the problems
        return []
    try:
        why = keys.NO_KEY if keys.find() is None else None
    except keys.KeyFileError as error:
        why = error.strerror
    return [
        f"{rules.path}: rule {number}, dag: column {chunnel.column}: warning: encrypt needs a key: {why}"
        for number, rule in enumerate(rules.rules, 1)
        for chunnel in _encrypting(parse(rule.dag))
        if why is not None
    ]


def _encrypting(dag: Dag) -> Iterator[Chunnel]:
    """The chunnels that take the cluster key, because nothing names certificates of their own."""
    if not named_files(dag):
        yield from (c for c in _all(dag) if c.type == "encrypt" and c.need in (Need.REQUIRE, Need.PREFER))


def _all(value: object) -> Iterator[Chunnel]:
    """The chunnels of a DAG, and of those among their arguments."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _all(item)
    elif isinstance(value, Dag):
        for chunnel in value.chunnels:
            yield chunnel
            yield from _all([*chunnel.args, *(v for _name, v in chunnel.kwargs)])


def _binds(node: ast.stmt, name: str) -> bool:
    """Whether a statement may give that name a function; one that is hard to tell may."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return node.name == name
    return not isinstance(node, (ast.AsyncFunctionDef, ast.Expr))


def main(argv: Sequence[str]) -> int:
    """Returns 0 (also with warnings), 1 when something in it cannot work, 2 when it is not understood."""
    parser = argparse.ArgumentParser(prog="bertha policy", description="Policy files.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    check = commands.add_parser("check", help="whether a file makes sense")
    check.add_argument("file", metavar="FILE", nargs="?", help="instead of the policy file in force")
    check.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args(argv)
    path = os.path.abspath(options.file) if options.file is not None else policy.find_file()
    if path is None:
        print("bertha policy: there is no policy file in force; name one", file=sys.stderr)
        return 2
    code, rules = 0, policy.EMPTY
    found: list[str] = []
    doubts: list[str] = []
    try:
        rules = policy.load(path)
        found, doubts = problems(rules), warnings(rules)
        code = 1 if found else 0
    except policy.PolicyError as error:
        code, found = 2, [str(error)]
    if options.json:
        said = {"file": path, "rules": len(rules.rules), "problems": found, "warnings": doubts}
        print(json.dumps(said, indent=2))
        return code
    if found or doubts:
        print("\n".join([*found, *doubts]), file=sys.stderr)
    if not found:
        more = f", {len(doubts)} warnings" if doubts else ""
        print(f"{path}: {len(rules.rules)} rules, nothing wrong{more}")
    return code
