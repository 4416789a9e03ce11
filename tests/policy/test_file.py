"""The policy file: what is understood, and that everything else is one clear error."""

from __future__ import annotations

import ipaddress
import os
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertha_socket import _policy_file, policy
from bertha_socket._native import lib
from bertha_socket.negotiation.pick import Wishes
from bertha_socket.policy import PolicyError, Rule, Subject

ADDR = ipaddress.ip_address("10.1.2.3")
REDIS = Subject(
    program="redis-server",
    exe="/usr/bin/redis-server",
    argv=("redis-server", "--port", "6379"),
    user="redis",
    uid=101,
    name="cache",
)


def rule(text: str) -> Rule:
    return policy.parse("[[rule]]\n" + text).rules[0]


def test_the_designs_example() -> None:
    found = rule(
        """
        program = "redis-server"            # name, glob or path; also argv, user, name given with --name
        side = "server"                     # client, server, any
        proto = "tcp"
        address = "0.0.0.0/0"
        port = 6379                         # or "6379-6400"
        dag = "local_or_remote()"
        prohibit = ["unix"]                 # implementations: require, prefer, avoid, prohibit
        spin_us = 20
        """
    )
    assert found.wishes == Wishes(prohibit=("unix",), spin_us=20)
    assert found.matches(REDIS, "server", "tcp", ADDR, 6379)
    assert not found.matches(REDIS, "client", "tcp", ADDR, 6379)
    assert not found.matches(REDIS, "server", "tcp", ADDR, 6380)
    assert not found.matches(REDIS, "server", "tcp", ipaddress.ip_address("::1"), 6379)
    assert found.matches(REDIS, "server", "tcp", ipaddress.ip_address("::ffff:10.1.2.3"), 6379)


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ('program = "redis-server"', True),
        ('program = "redis-*"', True),
        ('program = "redis"', False),
        ('program = "Redis-server"', False),
        ('program = "/usr/bin/redis-server"', True),
        ('program = "/usr/*/redis-server"', True),
        ('program = "bin/redis-server"', False),
        ('argv = "* --port 6379"', True),
        ('argv = "* --port 6380"', False),
        ('user = "redis"', True),
        ("user = 101", True),
        ('user = "101"', True),
        ("user = 0", False),
        ('name = "cache"', True),
        ('name = "c*"', True),
        ('name = "other"', False),
        ('side = "any"', True),
        ('side = "server"', True),
        ('side = "client"', False),
        ('proto = "any"', True),
        ('address = "10.0.0.0/8"', True),
        ('address = "10.1.2.3"', True),
        ('address = "10.1.2.4"', False),
        ('address = "::/0"', False),
        ('port = "6379-6400"', True),
        ('port = "1-6378"', False),
        ('port = "6379"', True),
        ('program = "redis-server"\nport = 1', False),
    ],
)
def test_matching(text: str, matches: bool) -> None:
    assert rule(text).matches(REDIS, "server", "tcp", ADDR, 6379) is matches


@pytest.mark.parametrize(
    ("argv", "name", "matches"),
    [
        (("python3", "/srv/app.py", "x"), "app.py", True),
        (("python3", "-u", "app.py"), "app.py", True),
        (("python3", "-m", "http.server", "80"), "http.server", True),
        (("python3", "-c", "app.py"), "app.py", False),
        (("python3", "app.py"), "python3*", True),
        (("./srv", "app.py"), "app.py", False),
    ],
)
def test_a_script_is_known_by_its_name(argv: tuple[str, ...], name: str, matches: bool) -> None:
    exe = "/usr/bin/python3.11" if argv[0] == "python3" else "/opt/srv"
    subject = Subject(program=os.path.basename(exe), exe=exe, argv=argv)
    assert rule(f'program = "{name}"').matches(subject, "client", "tcp", ADDR, 1) is matches


def test_the_first_rule_that_matches_wins() -> None:
    found = policy.parse(
        '[[rule]]\nprogram = "nginx"\nspin_us = 1\n[[rule]]\nspin_us = 2\n[[rule]]\nspin_us = 3\n'
    )
    assert found.wishes(REDIS, "server", "tcp", ADDR, 1).spin_us == 2
    assert policy.EMPTY.wishes(REDIS, "server", "tcp", ADDR, 1) == Wishes()
    assert policy.EMPTY.find(REDIS, "server", "tcp", ADDR, 1) is None


@pytest.mark.parametrize(
    ("text", "key", "remedy"),
    [
        ('progam = "x"', "progam", "a rule has program"),
        ("program = 7", "program", 'write program = "..."'),
        ('program = ""', "program", 'write program = "..."'),
        ('side = "both"', "side", "client, server, any"),
        ('proto = "sctp"', "proto", "tcp"),
        ('address = "10.0.0"', "address", "10.0.0.0/8"),
        ("address = 10", "address", "..."),
        ("port = 0", "port", "1 to 65535"),
        ("port = 65536", "port", "1 to 65535"),
        ("port = true", "port", "6379"),
        ('port = "80-70"', "port", "rising"),
        ('port = "http"', "port", "6379"),
        ('port = "80-"', "port", "6379"),
        ("port = 1.5", "port", "6379"),
        ('dag = "encrypt("', "dag", "column 9"),
        ("dag = 1", "dag", "..."),
        ('prohibit = "shm"', "prohibit", '["..."]'),
        ('prohibit = ["xdp"]', "prohibit", "shm, unix, tcp"),
        ("prohibit = [1]", "prohibit", "texts"),
        ('prefer = ["shm", "shm"]', "prefer", "remove one"),
        ('prefer = ["shm"]\nprohibit = ["shm"]', "prohibit", "remove it from one"),
        ('prefer = ["shm"]\navoid = ["shm"]', "avoid", "remove it from one"),
        ("spin_us = -1", "spin_us", "microseconds"),
        ("spin_us = 2000000", "spin_us", "microseconds"),
        ("spin_us = true", "spin_us", "microseconds"),
        ('spin_us = "20"', "spin_us", "microseconds"),
        ("ring_size = 300000", "ring_size", "524288"),
        ("ring_size = 2097152", "ring_size", "bytes"),
        ("ring_size = 1024", "ring_size", "bytes"),
        ('allow_users = "all"', "allow_users", '["..."]'),
        ("allow_users = [true]", "allow_users", "texts"),
        ("user = true", "user", "..."),
        ("user = -1", "user", "..."),
    ],
)
def test_an_error_names_file_rule_key_and_remedy(text: str, key: str, remedy: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy.parse(f"[[rule]]\n[[rule]]\n{text}\n", "/etc/b.toml")
    said = str(caught.value)
    assert said.startswith(f"/etc/b.toml: rule 2, {key}: ")
    assert remedy in said and "\n" not in said


@pytest.mark.parametrize(
    "text",
    ["rule = 1", "rule = [1]", "[rule]\nside = 'any'", "[[rules]]", "x = 1", "[[rule", "\x00", "a.b = 1"],
)
def test_a_document_that_is_no_policy(text: str) -> None:
    with pytest.raises(PolicyError, match=r"^/p: ") as caught:
        policy.parse(text, "/p")
    assert isinstance(caught.value, OSError)


def test_what_is_allowed_to_be_empty() -> None:
    assert policy.parse("").rules == ()
    assert rule('dag = ""').dag == ""
    assert rule('dag = " local_or_remote( ) "').dag
    assert rule("allow_users = [0, 'bob', '*']").wishes.allow_users == ("0", "bob", "*")


_letters = "ab*/-.1:\0"
_values = st.recursive(
    st.one_of(
        st.booleans(), st.integers(-5, 70000), st.text(_letters, max_size=6), st.floats(allow_nan=False)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(_letters, min_size=1, max_size=4), inner, max_size=2),
    ),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([*policy._KEYS, "other"]), _values, max_size=5))
def test_any_table_parses_or_is_a_policy_error(table: dict[str, object]) -> None:
    said = ""
    try:
        policy._rule(policy._Reader("p", 1, table)).matches(REDIS, "server", "tcp", ADDR, 80)
    except PolicyError as error:
        said = str(error)
    assert said.startswith("p: rule 1, ") or (not said and "other" not in table)


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_are_a_policy_error(data: bytes) -> None:
    try:
        policy.decode(data, "p")
    except PolicyError:
        return
    tomllib.loads(data.decode())


# -- files --------------------------------------------------------------------------------------------


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text("[[rule]]\nspin_us = 3\n")
    assert policy.load(str(path)).rules[0].wishes.spin_us == 3
    assert policy.load(str(path)).path == str(path)


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "large", "binary"])
def test_files_that_are_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "p.toml"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)  # an empty policy would be wrong, waiting for a writer worse
    elif kind == "large":
        path.write_bytes(b"#" * (policy.FILE_MAX + 1))
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolicyError, match=str(path)):
        policy.load(str(path))


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's real path is in test_in_force.py."""
    config = tmp_path / "config"
    (config / "bertha").mkdir(parents=True)
    mine = config / "bertha" / "bertha.toml"
    env = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(config)}
    system = tmp_path / "system.toml"
    monkeypatch.setattr(_policy_file, "SYSTEM_FILE", str(system))
    assert policy.find_file(env) is None
    system.write_text("")
    assert policy.find_file(env) == str(system)
    mine.write_text("")
    assert policy.find_file(env) == str(mine)
    assert policy.find_file(env | {"BERTHA_POLICY": "/not/there"}) == "/not/there"
    # A relative XDG_CONFIG_HOME is to be ignored (XDG Base Directory Specification).
    (tmp_path / ".config" / "bertha").mkdir(parents=True)
    (tmp_path / ".config" / "bertha" / "bertha.toml").write_text("")
    home = str(tmp_path / ".config" / "bertha" / "bertha.toml")
    assert policy.find_file(env | {"XDG_CONFIG_HOME": "relative"}) == home


def test_limits_are_the_shims() -> None:
    assert policy.RING_MAX == lib.BERTHA_RING_MAX


def test_chunnels_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "bertha.toml"
    path.write_text(
        '[[chunnel]]\nname = "rot"\nsource = "rot13.py:Rot"\n'
        '[[chunnel]]\nname = "more"\nsource = "my.module:More"\n'
        '[[rule]]\ndag = "rot() |> more()"\n'
    )
    found = policy.load(str(path))
    assert found.sources == {"rot": f"{tmp_path}/rot13.py:Rot", "more": "my.module:More"}
    assert len(found.rules) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('name = "a b"\nsource = "m:C"', "chunnel 1, name: 'a b' is no name"),
        ('source = "m:C"', "chunnel 1, name: "),
        ('name = "a"', "chunnel 1, source: must say where"),
        ('name = "a"\nsource = "module"', "chunnel 1, source: must say where"),
        ('name = "a"\nsource = "m:C"\nscope = "host"', "unknown key; a chunnel has name, source"),
        (
            'name = "a"\nsource = "m:C"\n[[chunnel]]\nname = "a"\nsource = "m:D"',
            "chunnel 2, name: 'a' is given",
        ),
    ],
)
def test_bad_chunnels(text: str, problem: str) -> None:
    with pytest.raises(policy.PolicyError) as caught:
        policy.parse(f"[[chunnel]]\n{text}\n")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{} = 1",
        "[{}]",
        "[[{}]]",
        "[rule]\nx = {{ {} = 1 }}",
        '# it\'s\nx = """it\'s \\" """""\n{} = 1',
        "x = '''a\\'''''\n{} = 1",
        "x = 'a\\'\n{} = 1",
    ],
)
@pytest.mark.parametrize("part", ["a", '"a\\"."', "'.\"'", " a\t"])
def test_keys_of_very_many_parts(text: str, part: str) -> None:
    """Each costs tomllib its square: a file's worth would take minutes."""
    before = time.process_time()
    with pytest.raises(PolicyError, match="parts"):
        policy.parse(text.format(".".join([part] * 20_000)))
    assert time.process_time() - before < 2


def test_dots_that_are_in_no_key() -> None:
    many = ".".join("abcdefghijklmnopqrstuvwxyz")
    text = f'# {many}\n[[rule]]\nprogram = \'{many}\' # {many}\nname = """\n{many}"""\n'
    (found,) = policy.parse(text).rules
    assert (found.program, found.name) == (many, many)


@pytest.mark.parametrize(
    "text", ['x = """' + '\\"""' * 40_000, "x = '''" + "''\n" * 40_000, "x = '" + '"\\' * 60_000]
)
def test_texts_without_an_end(text: str) -> None:
    before = time.process_time()
    with pytest.raises(PolicyError):
        policy.parse("#" + "." * 20 + "\n" + text)
    assert time.process_time() - before < 2


def test_too_many_rules() -> None:
    text = "[[rule]]\nspin_us = 1\n"
    assert len(policy.parse(text * policy.RULES_PER_FILE).rules) == policy.RULES_PER_FILE
    with pytest.raises(PolicyError, match=f"more than {policy.RULES_PER_FILE}"):
        policy.parse(text * (policy.RULES_PER_FILE + 1))


def test_rules_are_compared_with_a_process_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not again for each address that it listens on."""
    found = policy.parse('[[rule]]\nprogram = "x*"\n[[rule]]\nprogram = "redis*"\nport = 1\n')
    looked: list[Rule] = []
    is_about = Rule.is_about
    monkeypatch.setattr(Rule, "is_about", lambda self, who: looked.append(self) or is_about(self, who))
    for port in range(1, 4):
        rule = found.find(REDIS, "server", "tcp", ADDR, port)
        assert rule == (found.rules[1] if port == 1 else None)
    assert len(looked) == 2
