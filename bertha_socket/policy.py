"""The policy file `bertha.toml`: which program's connections get what.

    [[rule]]
    program = "redis-server"     # a name or glob; with a "/" in it, matched with the executable's path
    side = "server"              # client, server, any
    port = "6379-6400"
    prohibit = ["unix"]
    spin_us = 20

The first rule that matches a connection's end decides about that end.  Parsing is strict: a key or a value
that is not understood is an error that names file, rule and key, because a rule that silently says nothing
may have been the one that forbade something.
"""

from __future__ import annotations

import errno
import fnmatch
import ipaddress
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from bertha_socket._bottom import check as check_bottom
from bertha_socket._bottom import contradiction, upper, wished
from bertha_socket._policy_file import find_file as find_file
from bertha_socket._policy_reader import Network
from bertha_socket._policy_reader import PolicyError as PolicyError
from bertha_socket._policy_reader import Reader as _Reader
from bertha_socket._settings import NO_SETTINGS, Settings, settings_of
from bertha_socket.dag import Dag, DagError, Need
from bertha_socket.dag import parse as parse_dag
from bertha_socket.negotiation.offer import PRIORITY_MAX
from bertha_socket.negotiation.pick import IMPLEMENTATIONS, Wishes
from bertha_socket.negotiation.rules import RULES_MAX, check_pattern, glob

SIDES: Final = ("client", "server", "any")
PROTOCOLS: Final = ("tcp", "udp", "any")
#: Bytes; a ring's address space is BERTHA_RING_MAX of native/core/layout.h.
#: Below this, bulk transfer waits for wake-ups and is slower than plain TCP (measured: 0.2 of it at 4 KiB).
#: Less is slower than TCP where nobody spins: each ring full is a sleep.
RING_MIN: Final = 262144
RING_MAX: Final = 1 << 20
#: A second: a bound that is longer is a mistake in the unit.
SPIN_MAX_US: Final = 1_000_000
FILE_MAX: Final = 1 << 18

#: Of one file: they are gone through for each address that is listened on.
RULES_PER_FILE: Final = 256
_KNOWN_ABOUT_MAX: Final = 64
#: Of a dotted key.
KEY_PARTS_MAX: Final = 16

_TOKENS: Final = re.compile(
    r"""
      (?P<blank> [ \t]++)
    | (?P<dot> \.)
    | (?P<long> "{3} (?: [^"\\] | \\. | "{1,2}(?!") )*+ "{3,5} | '{3} (?: [^'] | '{1,2}(?!') )*+ '{3,5})
    | (?P<part> [A-Za-z0-9_-]++ | " (?: [^"\\\n] | \\. )*+ " | ' [^'\n]*+ ')
    | (?P<open> ["'])
    | (?P<other> \# [^\n]*+ | [^ \t."'A-Za-z0-9_\#-]++)
    """,
    re.VERBOSE | re.DOTALL,
)
_CHUNNEL_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_INTERPRETERS: Final = re.compile(r"(python|pypy|perl|ruby|node|sh|bash|dash|zsh|ksh)[0-9.]*")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Subject:
    """A process, as rules see it."""

    program: str
    exe: str = ""
    argv: tuple[str, ...] = ()
    user: str = ""
    uid: int = -1
    name: str = ""

    def names(self) -> frozenset[str]:
        """What the program goes by: its executable, its argv[0] and, under an interpreter, its script."""
        found = {self.program, os.path.basename(self.exe)}
        if self.argv:
            found.add(os.path.basename(self.argv[0]))
        if any(_INTERPRETERS.fullmatch(n) for n in found):
            found |= _script(self.argv[1:])
        return frozenset(found - {""})


def _script(words: tuple[str, ...]) -> set[str]:
    for i, word in enumerate(words):
        if word == "-m" and i + 1 < len(words):
            late = words[i + 1] == "bertha_socket.monkey"  # which runs what follows
            return {words[i + 1], *(_script(words[i + 2 :]) if late else ())}
        if word == "-c":
            return set()
        if not word.startswith("-"):
            return {os.path.basename(word)}
    return set()


@dataclass(frozen=True, slots=True)
class Rule:
    """One [[rule]].  None: the key is not given, everything matches."""

    program: str | None = None
    argv: str | None = None
    user: str | None = None
    name: str | None = None
    side: str = "any"
    #: Without the key a rule is about TCP alone: what fits a stream does not fit datagrams.
    proto: str = "tcp"
    address: Network | None = None
    ports: tuple[int, int] | None = None
    dag: str = ""
    wishes: Wishes = Wishes()

    def matches(self, subject: Subject, side: str, proto: str, address: Address, port: int) -> bool:
        """Whether this rule is about that end of a connection to `address`:`port`."""
        return self.reaches(side, proto, address, port) and self.is_about(subject)

    def reaches(self, side: str, proto: str, address: Address, port: int) -> bool:
        """Whether its conditions about the connection alone hold."""
        return (
            self.side in ("any", side)
            and self.proto in ("any", proto)
            and (self.ports is None or self.ports[0] <= port <= self.ports[1])
            and (self.address is None or _inside(address, self.address))
        )

    def is_about(self, subject: Subject) -> bool:
        """Whether this rule is about some connections of that process."""
        return (
            (self.program is None or self._is_program(subject))
            and (self.name is None or fnmatch.fnmatchcase(subject.name, self.name))
            and (self.user is None or self.user in (subject.user, str(subject.uid)))
            and (self.argv is None or fnmatch.fnmatchcase(" ".join(subject.argv), self.argv))
        )

    def _is_program(self, subject: Subject) -> bool:
        assert self.program is not None
        if "/" in self.program:
            return fnmatch.fnmatchcase(subject.exe, self.program)
        return any(fnmatch.fnmatchcase(n, self.program) for n in subject.names())


def _inside(address: Address, network: Network) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.version == network.version and address in network


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules of one file, in order."""

    rules: tuple[Rule, ...] = ()
    path: str = ""
    #: Chunnels that it brings itself, by name: "module:Class" or "/path/to/file.py:Class".
    sources: Mapping[str, str] = field(default_factory=dict)
    #: What it says about the agent; only an agent whose user owns the file listens to it.
    settings: Settings = NO_SETTINGS

    def find(self, subject: Subject, side: str, proto: str, address: Address, port: int) -> Rule | None:
        """The first rule that matches, None when none does."""
        if not self.rules:
            return None
        for rule in _about(self.rules, subject):
            if rule.reaches(side, proto, address, port):
                return rule
        return None

    def wishes(self, subject: Subject, side: str, proto: str, address: Address, port: int) -> Wishes:
        """What the first matching rule wants; nothing in particular when there is none."""
        rule = self.find(subject, side, proto, address, port)
        return carrying(rule) if rule is not None else Wishes()


#: By a policy's rules (by identity: to compare them is as much work) and a process: those that are about it.
_known_about: Final[dict[tuple[int, Subject], tuple[tuple[Rule, ...], tuple[Rule, ...]]]] = {}


def _about(rules: tuple[Rule, ...], subject: Subject) -> tuple[Rule, ...]:
    key = (id(rules), subject)
    known = _known_about.get(key)
    if known is not None and known[0] is rules:
        return known[1]
    found = tuple(rule for rule in rules if rule.is_about(subject))
    if len(_known_about) >= _KNOWN_ABOUT_MAX:
        _known_about.clear()
    _known_about[key] = (rules, found)
    return found


def carrying(rule: Rule) -> Wishes:
    """What a rule wants of what carries the bytes: its lists, and the right end of its DAG."""
    return _carrying(rule.dag, rule.wishes) if rule.dag else rule.wishes


@lru_cache(maxsize=256)
def _carrying(dag: str, wishes: Wishes) -> Wishes:
    return wished(parse_dag(dag), wishes)


def musts(policy: Policy, subject: Subject | None = None) -> str:
    """BERTHA_MUST for the shim: which programs' connections must not be plain even if no agent is there.

    With `subject` for that process alone, which is then known to be meant.
    """
    found = []
    for rule in policy.rules:
        if subject is not None and not rule.is_about(subject):
            continue
        if any(c.need is Need.REQUIRE for c in upper(parse_dag(rule.dag))):
            program = rule.program if rule.program is not None and ";" not in rule.program else "*"
            if subject is not None:
                program = "*"
            sides = {
                "tcp": (rule.side,),
                "udp": (f"udp-{rule.side}",),
                "any": (rule.side, f"udp-{rule.side}"),
            }
            found += [f"{side}={program}" for side in sides[rule.proto]]
    return ";".join(found)


EMPTY: Final = Policy()


_KEYS: Final = (
    "program", "argv", "user", "name", "side", "proto", "address", "port", "dag",
    "require", "prefer", "avoid", "prohibit", "priority", "spin_us", "ring_size", "allow_users",
)  # fmt: skip


def _patterns(reader: _Reader, key: str) -> tuple[str, ...]:
    """Implementations: of local_or_remote by name, of chunnels also as TYPE/NAME, with `*` for anything."""
    found = reader.names(key)
    if len(found) > RULES_MAX:
        raise reader.fail(key, f"more than {RULES_MAX} implementations")
    for pattern in found:
        if pattern not in IMPLEMENTATIONS:
            _check_pattern(reader, key, pattern)
    return found


def _check_pattern(reader: _Reader, key: str, pattern: str) -> None:
    try:
        check_pattern(pattern, key)
    except OSError:
        raise reader.fail(key, f"{pattern!r} names no implementation; write NAME or TYPE/NAME") from None
    if not _is_known(pattern):
        remedy = "shm, unix, tcp, or one that `bertha chunnels` lists (TYPE/NAME for what is not installed)"
        raise reader.fail(key, f"there is no implementation {pattern!r}; write {remedy}")


def _is_known(pattern: str) -> bool:
    """Whether any chunnel type has it; a type that is not installed here may have it elsewhere."""
    from bertha_socket.chunnels import all_types, get  # only here, to keep the agent small

    kind, slash, name = pattern.rpartition("/")
    if slash and "*" not in kind:
        try:
            own = get(kind).implementations
        except OSError:
            return True
        return any(glob(name, i.name) for i in own)
    return any(glob(name, i.name) for t in all_types() for i in t.implementations)


def _wishes(reader: _Reader) -> Wishes:
    lists = {k: _patterns(reader, k) for k in ("require", "prefer", "avoid", "prohibit")}
    for one, other in (
        ("require", "prohibit"),
        ("prefer", "prohibit"),
        ("prefer", "avoid"),
        ("require", "avoid"),
    ):
        both = set(lists[one]) & set(lists[other])
        if both:
            raise reader.fail(other, f"{min(both)!r} is also in {one}; remove it from one of them")
    ring = reader.number("ring_size", RING_MIN, RING_MAX, "bytes")
    if ring is not None and ring & (ring - 1):
        raise reader.fail(
            "ring_size", f"{ring} is not a power of two; the next one is {1 << ring.bit_length()}"
        )
    return Wishes(
        **lists,
        spin_us=reader.number("spin_us", 0, SPIN_MAX_US, "microseconds"),
        ring_size=ring,
        allow_users=reader.names("allow_users", numbers=True),
        priority=_priorities(reader),
    )


def _priorities(reader: _Reader) -> tuple[tuple[str, int], ...]:
    """Implementations of chunnels and the priority to offer them with; the first that fits counts."""
    inner = reader.table("priority")
    if inner is None:
        return ()
    names = inner.keys()
    if len(names) > RULES_MAX:
        raise reader.fail("priority", f"more than {RULES_MAX} implementations")
    found = []
    for pattern in names:
        if pattern in IMPLEMENTATIONS:
            raise reader.fail("priority", f"{pattern} has none; order shm, unix and tcp by prefer and avoid")
        _check_pattern(reader, "priority", pattern)
        value = inner.number(pattern, -PRIORITY_MAX, PRIORITY_MAX, "priority")
        assert value is not None
        found.append((pattern, value))
    return tuple(found)


def _rule(reader: _Reader) -> Rule:
    dag = reader.text("dag") if reader._table.get("dag") != "" else reader._table.pop("dag")
    assert dag is None or isinstance(dag, str)
    proto = reader.text("proto", PROTOCOLS) or "tcp"
    found = Dag()
    if dag:
        try:
            found = parse_dag(dag)
            check_bottom(found, proto)
        except DagError as error:
            raise reader.fail("dag", str(error.strerror)) from None
    rule = Rule(
        program=reader.text("program"),
        argv=reader.text("argv"),
        user=reader.user("user"),
        name=reader.text("name"),
        side=reader.text("side", SIDES) or "any",
        proto=proto,
        address=reader.address("address"),
        ports=reader.ports("port"),
        dag=dag or "",
        wishes=_wishes(reader),
    )
    against = contradiction(found, rule.wishes)
    if against is not None:
        raise reader.fail(against, "it leaves no room for the tcp() of the rule's dag; remove one of them")
    reader.done(_KEYS)
    return rule


def _sources(tables: object, path: str) -> dict[str, str]:
    """The [[chunnel]] tables: a name, and where its class is."""
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise PolicyError(f"{path}: 'chunnel' must be a list of tables; write [[chunnel]] with two brackets")
    found: dict[str, str] = {}
    for number, table in enumerate(tables, 1):
        reader = _Reader(path, number, table, "chunnel")
        name, source = reader.text("name"), reader.text("source")
        if name is None or not _CHUNNEL_NAME.fullmatch(name):
            raise reader.fail("name", f'{name!r} is no name; write name = "rot" (letters, digits and _)')
        if name in found:
            raise reader.fail("name", f"{name!r} is given twice; remove one")
        place, _, attribute = (source or "").rpartition(":")
        if not place or not attribute:
            raise reader.fail("source", 'must say where it is; write "module:Class" or "/path/file.py:Class"')
        if place.endswith(".py"):
            place = os.path.join(os.path.dirname(os.path.abspath(path)), place)
        found[name] = f"{place}:{attribute}"
        reader.done(("name", "source"))
    return found


def _check_keys(text: str, path: str) -> None:
    """Refuses keys of many parts (a.a.a = 1), for which tomllib takes quadratic time, before it sees them.

    The text is cut as TOML cuts it.  Where that ends early, tomllib gets no further either.
    """
    if text.count(".") < KEY_PARTS_MAX:
        return
    parts, after_dot = 0, False
    for found in _TOKENS.finditer(text):
        kind = found.lastgroup
        if kind == "open":
            return  # a text without an end
        if kind == "part":
            parts = parts + 1 if after_dot else 1
            if parts > KEY_PARTS_MAX:
                line = text.count("\n", 0, found.start()) + 1
                raise PolicyError(f"{path}: line {line}: a key of more than {KEY_PARTS_MAX} parts")
        if kind != "blank":
            after_dot = kind == "dot"


def parse(text: str, path: str = "policy") -> Policy:
    """The policy in a TOML text.  Raises PolicyError."""
    _check_keys(text, path)
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PolicyError(f"{path}: not TOML: {error}") from None
    rules = document.pop("rule", [])
    sources = _sources(document.pop("chunnel", []), path)
    settings = settings_of(document.pop("agent", None), document.pop("cluster", None), path)
    for key in document:
        problem = f"unknown key {key!r}; a policy has [[rule]] and [[chunnel]], [agent] and [cluster] tables"
        raise PolicyError(f"{path}: {problem}")
    if not isinstance(rules, list) or not all(isinstance(r, dict) for r in rules):
        raise PolicyError(f"{path}: 'rule' must be a list of tables; write [[rule]] with two brackets")
    if len(rules) > RULES_PER_FILE:
        problem = f"{len(rules)} rules, more than {RULES_PER_FILE}; write fewer, with globs and networks"
        raise PolicyError(f"{path}: {problem}")
    made = tuple(_rule(_Reader(path, i, table)) for i, table in enumerate(rules, 1))
    return Policy(made, path, sources, settings)


def load(path: str) -> Policy:
    """Reads a policy file.  Raises PolicyError."""
    try:
        # A FIFO must not make us wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            data = file.read(FILE_MAX + 1)
    except OSError as error:
        raise PolicyError(
            f"{path}: the policy file cannot be read ({error.strerror}); correct BERTHA_POLICY or the file"
        ) from None
    return decode(data, path)


def decode(data: bytes, path: str) -> Policy:
    """The policy in a file's bytes.  Raises PolicyError."""
    if len(data) > FILE_MAX:
        raise PolicyError(f"{path}: larger than {FILE_MAX} bytes; that is no policy file")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path}: not UTF-8 at byte {error.start}; a policy file is TOML text") from None
    return parse(text, path)
