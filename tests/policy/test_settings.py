"""[agent], [cluster] and `priority`: what they say, who is believed, and that an agent goes by them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bertha_socket import _settings, keys, policy
from bertha_socket.agent import client
from bertha_socket.agent.offers import chunnel_rules
from bertha_socket.policy import PolicyError

ALL = """
[agent]
choose = "choice.py:mine"
idle = 0
port = 7300
peers = ["10.0.0.0/8", "fd00::/8"]
limits = { connections_per_user = 5, links_per_process = 7 }
[cluster]
key = "secret/cluster.key"
"""


def _put(tmp_path: Path, text: str) -> dict[str, str]:
    path = tmp_path / "bertha.toml"
    path.write_text(text)
    path.chmod(0o600)
    return {"BERTHA_POLICY": str(path), "HOME": str(tmp_path)}


def test_all_that_can_be_said(tmp_path: Path) -> None:
    found = _settings.in_force(_put(tmp_path, ALL))
    assert found == _settings.Settings(
        choose=f"{tmp_path}/choice.py:mine",
        idle=0,
        port=7300,
        peers=("10.0.0.0/8", "fd00::/8"),
        limits=(("connections_per_user", 5), ("links_per_process", 7)),
        key=f"{tmp_path}/secret/cluster.key",
    )
    assert found.environment() == {
        "BERTHA_CHOICE": f"{tmp_path}/choice.py:mine",
        "BERTHA_AGENT_PORT": "7300",
        "BERTHA_AGENT_PEERS": "10.0.0.0/8,fd00::/8",
    }
    assert policy.parse("[agent]\npeers = []").settings.environment() == {"BERTHA_AGENT_PEERS": "none"}
    assert policy.parse("[[rule]]").settings == _settings.NO_SETTINGS


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("agent = 1", "'agent' must be one table"),
        ("[[agent]]", "'agent' must be one table"),
        ("[agent]\nx = 1", "p: [agent], x: unknown key; a [agent] has choose, idle"),
        ("[agent]\nchoose = 'f'", "p: [agent], choose: 'f' does not say where"),
        ("[agent]\nchoose = 'a.py:b c'", "choose: 'a.py:b c' does not say"),
        ("[agent]\nidle = -1", "idle: must be a whole number of seconds"),
        ("[agent]\nidle = 1.5", "idle: must be a whole number of seconds"),
        ("[agent]\nport = 65536", "port: "),
        ("[agent]\npeers = 'none'", "peers: must be a list"),
        ("[agent]\npeers = ['x']", "peers: 'x' is no network"),
        ("[agent]\nlimits = 1", "limits: must be a table"),
        ("[agent]\nlimits = { x = 1 }", "p: [agent]: limits, x: unknown key"),
        ("[agent]\nlimits = { connections = 0 }", "connections: must be"),
        ("[cluster]\nkey = 1", "p: [cluster], key: must be a text"),
        ("[cluster]\nkeys = ''", "p: [cluster], keys: unknown key"),
        ("[[rule]]\npriority = 1", "p: rule 1, priority: must be a table"),
        ("[[rule]]\npriority = { 'encrypt/native' = 1.5 }", "encrypt/native: must be a whole number"),
        ("[[rule]]\npriority = { 'encrypt/native' = true }", "encrypt/native: must be a whole number"),
        ("[[rule]]\npriority = { shm = 1 }", "priority: shm has none"),
        ("[[rule]]\npriority = { nativ = 1 }", "priority: there is no implementation 'nativ'"),
        ("[[rule]]\npriority = { 'a b' = 1 }", "priority: 'a b' names no implementation"),
    ],
)
def test_mistakes(text: str, problem: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy.parse(text, "p")
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_priorities_are_the_offers() -> None:
    text = "[[rule]]\npriority = { 'encrypt/native' = -5, '*/python' = 70 }"
    rules = chunnel_rules(policy.parse(text).rules[0])
    assert rules.priority("encrypt", "native", 10) == -5
    assert rules.priority("compress", "python", 1) == 70
    assert rules.priority("compress", "native", 10) == 10


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_somebody_else_is_not_believed(tmp_path: Path) -> None:
    env = _put(tmp_path, ALL)
    os.chown(env["BERTHA_POLICY"], 4711, -1)
    with pytest.raises(PolicyError, match=r"not believed: it belongs to another user \(uid 4711\)"):
        _settings.in_force(env)
    with pytest.raises(keys.KeyFileError, match="not believed"):  # rather than none
        keys.find(env)
    _put(tmp_path, "[[rule]]")
    assert _settings.in_force(env) == _settings.NO_SETTINGS


def test_a_file_that_others_may_write_is_not_believed(tmp_path: Path) -> None:
    env = _put(tmp_path, ALL)
    os.chmod(env["BERTHA_POLICY"], 0o666)
    with pytest.raises(PolicyError, match="others may write"):
        _settings.in_force(env)


def test_the_clusters_key(tmp_path: Path) -> None:
    env = _put(tmp_path, ALL)
    with pytest.raises(keys.KeyFileError, match=r"cluster\.key"):  # it was asked for, and is not there
        keys.find(env)
    made = keys.make(str(tmp_path / "secret" / "cluster.key"))
    assert keys.find(env) == made
    other = keys.make(str(tmp_path / "other.key"))
    assert keys.find(env | {"BERTHA_CLUSTER_KEY": str(tmp_path / "other.key")}) == other
    _put(tmp_path, "[cluster]\nkey = 'other.key'\n#")  # it is read anew
    assert keys.find(env) == other
    _put(tmp_path, "[cluster")
    with pytest.raises(keys.KeyFileError, match="not TOML"):
        keys.find(env)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("def mine(wish, alternatives): return None", None),
        ("mine = print", None),
        ("def other(wish, alternatives): return None", "it has no function 'mine'"),
        ("def mine(", "was never closed"),
        (None, "No such file"),
    ],
)
def test_policy_check_looks_at_the_choice_without_running_it(
    tmp_path: Path, body: str | None, problem: str | None
) -> None:
    from bertha_socket.cli.policy import problems

    env = _put(tmp_path, "[agent]\nchoose = 'choice.py:mine'")
    if body is not None:
        (tmp_path / "choice.py").write_text(body)
        (tmp_path / "choice.py").chmod(0o600)
    found = problems(policy.load(env["BERTHA_POLICY"]))
    assert (not found) if problem is None else (len(found) == 1 and problem in found[0])


def test_an_agent_goes_by_its_file(tmp_path: Path) -> None:
    """A real agent: an operator's function is loaded, or the agent does not start and says why."""
    text = "[agent]\nchoose = 'choice.py:mine'\nport = 0\nlimits = { connections_per_user = 77 }"
    env = os.environ | _put(tmp_path, text)
    choice = tmp_path / "choice.py"
    choice.write_text(
        f"from bertha_socket.agent import limits\n"
        f"with open({str(tmp_path / 'said')!r}, 'w') as file: file.write(str(limits.CONNECTIONS_PER_USER))\n"
        "def mine(wish, alternatives): return None\n"
    )
    choice.chmod(0o600)
    path = str(tmp_path / "agent.sock")
    command = [sys.executable, "-m", "bertha_socket.cli.main", "agent", "--socket", path]
    done = subprocess.run([*command, "--detach"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    try:
        assert (tmp_path / "said").read_text() == "77"
        assert client.is_serving(path)
    finally:
        subprocess.run([*command, "--stop"], env=env, check=True, capture_output=True, timeout=60)
    choice.chmod(0o666)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "others may write" in done.stderr and "choose" in done.stderr
