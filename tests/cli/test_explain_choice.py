"""bertha explain says what two ends would agree on, by the agent's own offers and choice: or the refusal."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bertha_socket import keys
from bertha_socket.agent.authors import Brought
from bertha_socket.chunnels import ChunnelType, Implementation
from bertha_socket.chunnels._types import wires
from bertha_socket.cli._would import Here, chunnels_of
from bertha_socket.policy import Rule
from tests.cli.conftest import Launcher
from tests.cli.fake_agent import fake_agent

_ENDS = ("my-client", "10.0.0.1:80", "--peer", "my-server")


class Asked:
    """`bertha explain` with a policy of one rule for each end, and perhaps a key."""

    def __init__(self, launcher: Launcher, directory: Path) -> None:
        self._launcher = launcher
        self.policy = directory / "bertha.toml"
        self.key = directory / "cluster.key"
        self.env: dict[str, str] = {}

    def rules(self, client: str, server: str, more: str = "") -> None:
        text = "".join(
            f"[[rule]]\nprogram = 'my-{side}'\nside = '{side}'\n{rule}\n"
            for side, rule in (("client", client), ("server", server))
            if rule
        )
        self.policy.write_text(text + more)

    def with_key(self) -> None:
        keys.make(str(self.key))
        self.env["BERTHA_CLUSTER_KEY"] = str(self.key)

    def json(self, code: int, *words: str) -> dict[str, Any]:
        command = ("explain", "--json", "--policy", str(self.policy), *_ENDS, *words)
        done = self._launcher.bertha(*command, env=self.env)
        assert (done.returncode, done.stderr) == (code, ""), done.stdout
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found

    def text(self, code: int, *words: str) -> str:
        command = ("explain", "--policy", str(self.policy), *_ENDS, *words)
        done = self._launcher.bertha(*command, env=self.env)
        assert (done.returncode, done.stderr) == (code, ""), done.stdout
        return done.stdout


@pytest.fixture
def asked(launcher: Launcher, tmp_path: Path) -> Asked:
    return Asked(launcher, tmp_path)


def test_what_one_end_prohibits_and_the_other_requires(asked: Asked) -> None:
    asked.with_key()
    asked.rules("dag = 'prohibit encrypt()'", "dag = 'encrypt()'")
    found = asked.json(1)
    assert found["negotiation"]["verdict"] == "refused"
    refusal = found["negotiation"]["refusal"]
    assert (refusal["chunnel"], refusal["why"]) == ("encrypt", "the client prohibits it")
    assert "native" in refusal["server"]
    assert found["pick"]["implementation"] is None
    assert "refused encrypt cannot be had: the client prohibits it" in asked.text(1)


def test_without_a_key(asked: Asked) -> None:
    asked.rules("", "dag = 'encrypt()'")
    found = asked.json(1)
    (encrypt,) = found["ends"][1]["chunnels"]
    assert encrypt["implementation"] is None and set(encrypt["not"].values()) == {keys.NO_KEY}
    text = asked.text(1)
    assert f"refused encrypt cannot be had: {keys.NO_KEY}" in text and "encrypt (require): none here" in text
    asked.with_key()
    found = asked.json(0)
    (encrypt,) = found["negotiation"]["chunnels"]
    assert (encrypt["type"], encrypt["client"], encrypt["server"]) == ("encrypt", "native", "native")
    assert found["negotiation"]["carriers"] == {"client": "native", "server": "native"}
    assert "plan    encrypt(): native at the client, native at the server, wire tls" in asked.text(0)


def test_a_key_that_cannot_be_used(asked: Asked) -> None:
    asked.key.write_text("no key\n")
    asked.key.chmod(0o600)
    asked.env["BERTHA_CLUSTER_KEY"] = str(asked.key)
    asked.rules("", "dag = 'encrypt()'")
    assert f"{asked.key}: not a cluster key" in asked.text(1)


def test_the_key_of_the_policy_that_is_tried(asked: Asked) -> None:
    keys.make(str(asked.key))
    asked.rules("", "dag = 'encrypt()'", "[cluster]\nkey = 'cluster.key'\n")
    assert asked.json(0)["negotiation"]["verdict"] == "plan"


def test_certificates_that_are_not_there(asked: Asked) -> None:
    asked.rules("", """dag = 'encrypt(cert="/none.pem", key="/none.key")'""")
    refusal = asked.json(1)["negotiation"]["refusal"]
    assert refusal["chunnel"] == "the server's DAG" and "/none.pem" in refusal["why"]


def test_what_is_left_out(asked: Asked) -> None:
    asked.rules("prohibit = ['compress/*']", "dag = 'prefer compress() |> count()'")
    found = asked.json(0)
    assert found["negotiation"]["verdict"] == "plan"
    assert [c["type"] for c in found["negotiation"]["chunnels"]] == ["count"]
    (left,) = found["negotiation"]["omitted"]
    assert left["type"] == "compress" and left["why"]
    assert f"without compress: {left['why']}" in asked.text(0)
    asked.rules("prohibit = ['compress/*']", "dag = 'prefer compress()'")
    found = asked.json(0)
    assert (found["negotiation"]["verdict"], found["pick"]["implementation"]) == ("plain", "shm")


def test_a_missing_type_is_named(asked: Asked) -> None:
    asked.rules("", "dag = 'count() |> nosuch()'")
    assert asked.json(1)["negotiation"]["refusal"]["chunnel"] == "nosuch"
    assert "column 12: there is no chunnel type 'nosuch' here; install the package" in asked.text(1)


def test_datagrams_have_rules_of_their_own(asked: Asked) -> None:
    asked.rules("", "proto = 'udp'\ndag = 'frame() |> prefer compress() |> reliable()'")
    assert [end["rule"] for end in asked.json(0)["ends"]] == [None, None]
    assert "no rule matches\n" in asked.text(0)
    found = asked.json(0, "--proto", "udp")
    assert [end["rule"] for end in found["ends"]] == [None, 1]
    assert (found["proto"], found["pick"]["implementation"]) == ("udp", "udp")
    assert [c["client"] for c in found["negotiation"]["chunnels"]] == ["native", "native", "native"]
    assert found["negotiation"]["carriers"] == {"client": "native", "server": "native"}
    asked.rules("", "proto = 'udp'\ndag = 'http2() |> reliable()'")
    found = asked.json(0, "--proto", "udp")
    assert [c["client"] for c in found["negotiation"]["chunnels"]] == ["python", "native"]
    assert found["negotiation"]["carriers"] == {"client": "python", "server": "python"}
    asked.rules("", "proto = 'udp'\ndag = 'compress()'")
    refusal = asked.json(1, "--proto", "udp")["negotiation"]["refusal"]
    assert "over UDP: the program gives datagrams" in refusal["why"]
    asked.rules("dag = 'compress()'", "")
    found = asked.json(0, "--proto", "udp")
    assert (found["negotiation"]["verdict"], found["pick"]["implementation"]) == ("plain", "udp")


def test_an_end_says_of_datagrams_what_the_plan_says(asked: Asked) -> None:
    """The native carrier has all of these for datagrams, too (decision 0022)."""
    asked.with_key()
    rule = "proto = 'udp'\ndag = 'frame() |> compress() |> encrypt() |> reliable()'"
    asked.rules(rule, rule)
    found = asked.json(0, "--proto", "udp")
    assert [c["client"] for c in found["negotiation"]["chunnels"]] == ["native"] * 4
    for end in found["ends"]:
        assert [(c["implementation"], c["not"]) for c in end["chunnels"]] == [("native", {})] * 4, end
    assert "not native" not in asked.text(0, "--proto", "udp")


def test_what_the_native_carrier_has_for_connections_alone() -> None:
    both = tuple(
        Implementation(name, "own", wires("own/1"), carrier=name, priority=priority)
        for name, priority in (("native", 100), ("python", 10))
    )
    here = Here(Brought(types=(ChunnelType("own", "", implementations=both),)))
    rule = Rule(dag="own()")
    (own,) = chunnels_of(rule, here)
    assert (own["implementation"], own["not"]) == ("native", {})
    (own,) = chunnels_of(rule, here._replace(proto="udp"))
    assert own["implementation"] == "python" and "connections alone" in own["not"]["native"]


def test_tcp_at_the_right_end(asked: Asked) -> None:
    asked.rules("", "dag = 'tcp()'")
    found = asked.json(0)
    assert found["pick"] | {"implementation": "tcp", "cause": "policy", "carried": False} == found["pick"]
    assert "pick    tcp (because: policy)" in asked.text(0)


_ROT = "from bertha_socket.chunnels import Pipe\nclass Rot(Pipe):\n    name = 'rot'\n    summary = 'x'\n"


def test_chunnels_that_the_policy_brings(asked: Asked, tmp_path: Path) -> None:
    """They are looked at as the agent does it, in a child."""
    source = tmp_path / "rot.py"
    source.write_text(_ROT)
    asked.rules("", "dag = 'rot()'", "[[chunnel]]\nname = 'rot'\nsource = 'rot.py:Rot'\n")
    found = asked.json(0)
    assert [c["type"] for c in found["negotiation"]["chunnels"]] == ["rot"]
    assert found["negotiation"]["carriers"] == {"client": "authors", "server": "authors"}
    # What is in C alone has the native carrier, beside which another one may come (decision 0022).
    for dag, carrier in (("frame() |> rot() |> reliable()", "authors"), ("reliable()", "native")):
        asked.rules("", f"proto = 'udp'\ndag = '{dag}'", "[[chunnel]]\nname = 'rot'\nsource = 'rot.py:Rot'\n")
        found = asked.json(0, "--proto", "udp")
        assert [c["type"] for c in found["negotiation"]["chunnels"]] == dag.replace("()", "").split(" |> ")
        assert found["negotiation"]["carriers"] == {"client": carrier, "server": carrier}
    asked.rules("", "dag = 'rot()'", "[[chunnel]]\nname = 'rot'\nsource = 'rot.py:Rot'\n")
    source.write_text("raise RuntimeError('broken on purpose')\n")
    found = asked.json(1)
    assert "chunnel rot: " in found["negotiation"]["refusal"]["why"]
    assert "broken on purpose" in found["ends"][1]["chunnels"][0]["problem"]
    assert "broken on purpose" in asked.text(1)


def test_an_operators_choice(asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "choice.py").write_text("def none(wish, alternatives):\n    return None\n")
    asked.rules("", "dag = 'compress()'", "[agent]\nchoose = 'choice.py:none'\n")
    assert "policy function" in asked.json(1)["negotiation"]["refusal"]["why"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be asked as another user")
@pytest.mark.parametrize("fact", ["0123456789abcdef", None])
def test_another_users_agent_says_whether_it_has_the_key(
    asked: Asked, tmp_path: Path, fact: str | None
) -> None:
    """A system agent's key is not ours to read."""
    path = tmp_path / "other.sock"
    asked.rules("", "dag = 'encrypt()'")
    asked.env["BERTHA_AGENT"] = str(path)
    status = {"agent": {"cluster_key": fact}, "listeners": [], "processes": []}
    with fake_agent(path, status):
        os.chown(path, 65534, 65534)
        found = asked.json(1 if fact is None else 0)
    assert found["negotiation"]["verdict"] == ("refused" if fact is None else "plan")
