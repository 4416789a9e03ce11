"""bertha explain: the same rules and the same pick as the agent's."""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path
from typing import Any

import pytest

from bertha_socket.cli.explain import parse_address
from tests.cli.conftest import Launcher
from tests.cli.fake_agent import fake_agent

_POLICY = """
[[rule]]
program = "my-server"
side = "server"
port = "6379-6400"
spin_us = 20

[[rule]]
program = "my-client"
address = "10.0.0.0/8"
prohibit = ["shm"]

[[rule]]
program = "script.py"
prefer = ["unix"]

[[rule]]
name = "quiet"
require = ["tcp"]
"""


@pytest.fixture
def policy(tmp_path: Path) -> str:
    path = tmp_path / "bertha.toml"
    path.write_text(_POLICY)
    return str(path)


def explain(launcher: Launcher, policy: str, *args: str) -> dict[str, Any]:
    done = launcher.bertha("explain", "--json", "--policy", policy, *args)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def rules(found: dict[str, Any]) -> list[int | None]:
    return [end["rule"] for end in found["ends"]]


def test_no_rule_matches(launcher: Launcher, policy: str) -> None:
    found = explain(launcher, policy, "other", "10.0.0.1:80")
    assert rules(found) == [None, None]
    assert found["pick"]["implementation"] == "shm"


def test_the_servers_rule(launcher: Launcher, policy: str) -> None:
    found = explain(launcher, policy, "other", ":6379", "--peer", "my-server")
    assert rules(found) == [None, 1]
    assert found["ends"][1]["says"] == {
        "program": "my-server",
        "side": "server",
        "port": "6379-6400",
        "spin_us": 20,
    }
    assert found["pick"] == {
        "implementation": "shm",
        "cause": "none",
        "spin_us": 20,
        "ring_size": None,
        "carried": False,
    }
    assert rules(explain(launcher, policy, "my-server", ":6379", "--side", "server")) == [None, 1]
    assert rules(explain(launcher, policy, "my-server", ":6379")) == [None, None]
    assert rules(explain(launcher, policy, "other", ":6401", "--peer", "my-server")) == [None, None]


def test_the_clients_rule(launcher: Launcher, policy: str) -> None:
    found = explain(launcher, policy, "my-client", "10.1.2.3:80")
    assert rules(found) == [2, None]
    assert found["pick"]["implementation"] == "unix"
    assert found["pick"]["cause"] == "shm prohibited"
    assert explain(launcher, policy, "my-client", "11.1.2.3:80")["pick"]["implementation"] == "shm"


def test_a_script_goes_by_its_own_name(launcher: Launcher, policy: str, tmp_path: Path) -> None:
    program = tmp_path / "script.py"
    program.write_text("#!/usr/bin/python3\n")
    program.chmod(0o755)
    found = explain(launcher, policy, str(program), "[::1]:80")
    assert rules(found) == [3, None]
    assert found["pick"]["implementation"] == "unix"
    assert rules(explain(launcher, policy, "/usr/bin/python3", ":80", "--args", f"-I {program} x")) == [
        3,
        None,
    ]


def test_names_and_users(launcher: Launcher, policy: str) -> None:
    found = explain(launcher, policy, "other", ":80", "--name", "quiet")
    assert (rules(found), found["pick"]["implementation"]) == ([4, None], "tcp")
    assert rules(explain(launcher, policy, "other", ":80", "--peer-name", "quiet")) == [None, 4]
    found = explain(launcher, policy, "other", ":80", "--user", "0", "--peer-user", "12345")
    system_agent = os.geteuid() == 0  # the one that would be started: it may join two users
    expected = ("shm", "none") if system_agent else ("tcp", "other user")
    assert (found["pick"]["implementation"], found["pick"]["cause"]) == expected


def test_in_words(launcher: Launcher, policy: str) -> None:
    done = launcher.bertha("explain", "--policy", policy, "my-client", "10.0.0.1:80")
    assert 'rule 2: program = "my-client", address = "10.0.0.0/8", prohibit = ["shm"]' in done.stdout
    assert "pick    unix (because: shm prohibited)" in done.stdout


@pytest.mark.parametrize(
    "args",
    [
        ["x", "10.0.0.1"],
        ["x", "10.0.0.1:"],
        ["x", "10.0.0.1:0"],
        ["x", "10.0.0.1:65536"],
        ["x", "::1:80"],
        ["x", "name.invalid:80"],
        ["x", "10.0.0:80"],
        ["x", ":80", "--user", "no such user"],
        ["x", ":80", "--policy", "/none/such"],
        ["x", ":80", "--args", "'"],
        ["x"],
    ],
)
def test_wrong_usage(launcher: Launcher, args: list[str]) -> None:
    done = launcher.bertha("explain", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr


def test_addresses() -> None:
    assert parse_address("10.0.0.1:80") == (ipaddress.ip_address("10.0.0.1"), 80)
    assert parse_address("[fe80::1]:1") == (ipaddress.ip_address("fe80::1"), 1)
    assert parse_address("localhost:65535") == (ipaddress.ip_address("127.0.0.1"), 65535)


def test_who_listens_now(launcher: Launcher, policy: str, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    process = {"pid": 17, "uid": os.geteuid(), "program": "my-server", "exe": "/x/my-server", "name": ""}
    listener = {"pid": 17, "program": "my-server", "entries": ["127.0.0.1:6379", "[::1]:6379"]}
    command = ["explain", "--json", "--policy", policy, "other"]
    with fake_agent(path, {"listeners": [listener], "processes": [process]}):
        found = [
            json.loads(launcher.bertha(*command, where, env={"BERTHA_AGENT": str(path)}).stdout)
            for where in ("127.0.0.1:6379", "[::1]:6379", "127.0.0.1:6380")
        ]
    assert [each["listening"] for each in found] == [True, True, False]
    assert [rules(each) for each in found] == [[None, 1], [None, 1], [None, None]]
