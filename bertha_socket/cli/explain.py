"""`bertha explain PROGRAM ADDRESS`: which rules match, what would be agreed on, and what would carry it.

Asks the same functions that the agent asks (policy and negotiation), about a connection that need not exist.
The server is the one that listens there now, when an agent runs and knows one.  What only a real connection
shows (do memory and descriptors suffice) is not in the answer; `bertha ps` and the connection log have it.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import pwd
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bertha_socket import policy
from bertha_socket.agent import client, paths
from bertha_socket.cli._command import CommandError, find_command, follow
from bertha_socket.cli._drawing import as_svg, as_text
from bertha_socket.cli._negotiate import brought_by, key_of, negotiated
from bertha_socket.cli._would import Here, chunnels_of
from bertha_socket.dag import parse
from bertha_socket.negotiation.pick import Plan, Wishes, pick

__all__ = ["main", "parse_address"]

_ANY = "?"  # stands for a peer that was not named; no program is called that


def parse_address(text: str) -> tuple[policy.Address, int]:
    """`10.0.0.1:80`, `[::1]:80`, or `:80` for the loopback address.  Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r}: write ADDRESS:PORT, with an IPv6 address in brackets")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, [::1]:{port}")
    return ipaddress.ip_address({"": "127.0.0.1", "localhost": "127.0.0.1"}.get(host, host)), int(port)


def _user(given: str | None) -> tuple[str, int]:
    try:
        if given is None:
            entry = pwd.getpwuid(os.geteuid())
        elif given.isascii() and given.isdigit():
            entry = pwd.getpwuid(int(given))
        else:
            entry = pwd.getpwnam(given)
    except KeyError:
        if given is None or given.isdigit():
            return "", os.geteuid() if given is None else int(given)
        raise ValueError(f"there is no user {given!r}") from None
    return entry.pw_name, entry.pw_uid


def _subject(words: Sequence[str], user: str | None, name: str) -> policy.Subject:
    """The process that `words` would become; a program that is not installed here has its name only."""
    user_name, uid = _user(user)
    try:
        chain = follow(find_command(words[0], os.environ), words, os.environ)
        exe, argv = os.path.realpath(chain.last), chain.argv
    except CommandError:
        exe, argv = (words[0] if words[0].startswith("/") else ""), tuple(words)
    program = os.path.basename(argv[0])  # what the shim calls it (program_invocation_short_name)
    return policy.Subject(program=program, exe=exe, argv=tuple(argv), user=user_name, uid=uid, name=name)


def _given(rule: policy.Rule) -> dict[str, Any]:
    """The rule's keys that say something, as in the file."""
    plain = policy.Rule()
    found: dict[str, Any] = {}
    for key, value in asdict(rule).items():
        if key == "wishes":
            unset = Wishes()._asdict()
            wishes = rule.wishes._asdict()
            wishes["priority"] = dict(rule.wishes.priority)
            unset["priority"] = {}
            found |= {k: list(v) if isinstance(v, tuple) else v for k, v in wishes.items() if v != unset[k]}
        elif value != getattr(plain, key):
            low, high = rule.ports or (0, 0)
            if key == "ports":
                found["port"] = low if low == high else f"{low}-{high}"
            else:
                found[key] = str(value)
    return found


def _end(
    rules: policy.Policy, subject: policy.Subject, side: str, address: policy.Address, port: int, here: Here
) -> tuple[dict[str, Any], Wishes]:
    rule = rules.find(subject, side, here.proto, address, port)
    described: dict[str, Any] = {
        "side": side,
        "program": subject.program,
        "exe": subject.exe,
        "user": subject.user or str(subject.uid),
        "rule": None,
        "says": {},
    }
    if rule is not None:
        described["rule"] = next(i for i, each in enumerate(rules.rules, 1) if each is rule)
        described["says"] = _given(rule)
        if rule.dag:
            described["chunnels"] = chunnels_of(rule, here)
    return described, policy.carrying(rule) if rule is not None else Wishes()


def _status() -> Mapping[str, Any] | None:
    """What the agent says that would decide; None: there is none to ask."""
    try:
        return client.agent_status(paths.default_path())
    except OSError:
        return None


def _listening(
    status: Mapping[str, Any] | None, address: policy.Address, port: int, proto: str
) -> policy.Subject | None:
    """Who listens there now, as the agent knows it; None: nobody that it knows."""
    host = f"[{address}]" if address.version == 6 else str(address)
    for listener in (status or {}).get("listeners") or []:
        if listener.get("proto", "tcp") == proto and f"{host}:{port}" in listener.get("entries", []):
            for process in (status or {}).get("processes") or []:
                if process.get("pid") == listener.get("pid"):
                    name, uid = _user(str(process["uid"]))
                    return policy.Subject(
                        process["program"], process["exe"], (), user=name, uid=uid, name=process["name"]
                    )
    return None


def _agents_user() -> int:
    """Whose agent would decide."""
    try:
        return os.stat(paths.default_path()).st_uid
    except OSError:
        return os.geteuid()


def _explain(options: argparse.Namespace, rules: policy.Policy) -> dict[str, Any]:
    address, port = options.address
    proto: str = options.proto
    status = _status()
    subject = _subject(options.program, options.user, options.name)
    live = None
    if not options.peer and options.side != "server":
        live = _listening(status, address, port, proto)
    peer = live or _subject([options.peer or _ANY], options.peer_user or options.user, options.peer_name)
    both = (peer, subject) if options.side == "server" else (subject, peer)
    agents_user = _agents_user()
    brought = brought_by(rules)
    here = Here(brought, key_of(status if agents_user != os.geteuid() else None), proto)
    described, wishes = zip(
        *(
            _end(rules, each, side, address, port, here)
            for side, each in zip(("client", "server"), both, strict=True)
        ),
        strict=True,
    )
    found = negotiated(rules, both, address, port, proto, here.why_no_key, brought)
    pick: dict[str, Any] = {"implementation": proto, "cause": "none", "spin_us": None, "ring_size": None}
    pick["carried"] = found["verdict"] == "plan"
    if found["verdict"] == "refused":
        pick |= {"implementation": None, "cause": "refused"}
    elif found["verdict"] == "plain" and proto == "tcp":  # what has chunnels goes through a carrier, over TCP
        pick |= _picked(wishes[0], wishes[1], both, agents_user)
    return {
        "address": str(address),
        "port": port,
        "proto": proto,
        "policy": rules.path or None,
        "listening": live is not None,
        "ends": list(described),
        "negotiation": found,
        "pick": pick,
    }


def _picked(
    client_wishes: Wishes, server_wishes: Wishes, both: Sequence[policy.Subject], agents_user: int
) -> dict[str, Any]:
    users = [{subject.user, str(subject.uid)} - {""} for subject in both]
    picked = pick(
        client_wishes,
        server_wishes,
        same_user=both[0].uid == both[1].uid,
        client_user=users[0],
        server_user=users[1],
        system_agent=agents_user == 0,
    )
    found = picked._asdict() if isinstance(picked, Plan) else {}
    return {**found, "cause": picked.cause.value}


def _lines(found: Mapping[str, Any]) -> list[str]:
    lines = [f"policy  {found['policy'] or 'none'}"]
    for end in found["ends"]:
        who = "any program without a rule of its own" if end["program"] == _ANY else end["program"]
        now = " (listens there now)" if end["side"] == "server" and found["listening"] else ""
        lines.append(f"{end['side']}  {who}, user {end['user']}{now}")
        if end["rule"] is None:
            lines.append(f"        no rule matches{' (of UDP)' if found['proto'] == 'udp' else ''}")
        else:
            says = ", ".join(f"{key} = {json.dumps(value)}" for key, value in end["says"].items())
            lines.append(f"        rule {end['rule']}: {says or '(empty)'}")
            if end["says"].get("dag"):
                lines += [f"        {line}" for line in as_text(parse(end["says"]["dag"]))]
                lines += [f"        {line}" for line in _chunnel_lines(end["chunnels"])]
    deal, plan = found["negotiation"], found["pick"]
    for number, chunnel in enumerate(deal["chunnels"]):
        lines += _plan_lines(chunnel, "plan    " if number == 0 else " " * 8)
    lines += [f"without {left['type']}: {left['why']}" for left in deal["omitted"]]
    if deal["refusal"] is not None:
        return [*lines, f"refused {deal['refusal']['text']}"]
    details = [f"{key}={plan[key]}" for key in ("spin_us", "ring_size") if plan[key] is not None]
    if plan["carried"]:
        at = deal["carriers"]
        details.append(f"through carriers: {at['client']} at the client, {at['server']} at the server")
    if plan["cause"] != "none":
        details.append(f"because: {plan['cause']}")
    lines.append(f"pick    {plan['implementation']}" + (f" ({', '.join(details)})" if details else ""))
    return lines


def _plan_lines(chunnel: Mapping[str, Any], before: str) -> list[str]:
    arguments = ", ".join(f"{name}={value}" for name, value in chunnel["arguments"].items())
    at = [f"{chunnel[side] or 'nothing'} at the {side}" for side in ("client", "server")]
    line = f"{before}{chunnel['type']}({arguments}): {', '.join(at)}, wire {chunnel['wire']}"
    inner = [each for c in chunnel["inner"] for each in _plan_lines(c, " " * (len(before) + 4))]
    return [line, *inner]


def _chunnel_lines(chunnels: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for chunnel in chunnels:
        lines.append(f"{chunnel['type']} ({chunnel['need']}): {chunnel['implementation'] or 'none here'}")
        lines += [f"    then {name}: {why}" for name, why in chunnel["after"].items()]
        lines += [f"    not {name}: {why}" for name, why in chunnel["not"].items()]
        if chunnel["problem"]:
            lines.append(f"    {chunnel['problem']}")
        for inner in chunnel["inner"]:
            first, *more = _chunnel_lines([inner])
            lines += [f"    {inner['in']}: {first}", *(f"    {line}" for line in more)]
    return lines


def _drawn(found: Mapping[str, Any]) -> str:
    """The SVG of the server's DAG, else the client's, which is what a connection would have."""
    texts = [end["says"].get("dag") for end in reversed(found["ends"])]
    return as_svg(parse(next((t for t in texts if t), "")))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bertha explain",
        description="Which rules match a connection of PROGRAM, and what would be picked for it, and why.",
        epilog="Exit code: 0; 1 the connection would be refused; 2 wrong usage, address, user or policy.",
    )
    parser.add_argument("program", metavar="PROGRAM", help="name or path, as one would start it")
    parser.add_argument("address", metavar="ADDRESS", help="of the server: 10.0.0.1:80, [::1]:80, :80")
    parser.add_argument("--side", choices=("client", "server"), help="which end PROGRAM is (default: client)")
    parser.add_argument(
        "--proto", choices=("tcp", "udp"), default="tcp", help="connections or datagrams (default: tcp)"
    )
    parser.add_argument("--name", default="", help="as given with bertha-run --name")
    parser.add_argument("--user", help="who runs PROGRAM (default: you)")
    parser.add_argument("--args", default="", help="PROGRAM's arguments, as one would type them")
    parser.add_argument(
        "--peer", metavar="PROGRAM", help="the program at the other end (default: who listens)"
    )
    parser.add_argument("--peer-name", default="", metavar="NAME", help="its --name")
    parser.add_argument("--peer-user", metavar="USER", help="who runs it (default: the same user)")
    parser.add_argument("--policy", metavar="FILE", help="instead of the policy file in force")
    parser.add_argument(
        "--svg", metavar="FILE", help="draw the DAG (the server's, else the client's) into FILE"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    return parser


def main(argv: Sequence[str]) -> int:
    """Returns 0; 1 when the connection would be refused; 2 for an address, user or policy file that cannot be
    used."""
    options = _parser().parse_args(argv)
    try:
        options.address = parse_address(options.address)
        options.program = [options.program, *shlex.split(options.args)]
        path = os.path.abspath(options.policy) if options.policy is not None else policy.find_file()
        rules = policy.load(path) if path is not None else policy.EMPTY
        if path is not None:  # its [cluster] and [agent] are in force too
            os.environ["BERTHA_POLICY"] = path
        found = _explain(options, rules)
        if options.svg is not None:
            with open(options.svg, "w", encoding="utf-8") as file:
                file.write(_drawn(found))
    except (ValueError, OSError) as error:
        print(f"bertha explain: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2) if options.json else "\n".join(_lines(found)))
    return 1 if found["negotiation"]["refusal"] is not None else 0
