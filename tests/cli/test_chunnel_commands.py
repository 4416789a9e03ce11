"""bertha chunnels, bertha policy check, and the DAG in bertha explain."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bertha_socket import keys
from bertha_socket.cli._drawing import as_svg, as_text
from bertha_socket.dag import parse
from tests.cli.conftest import Launcher


def test_the_types_and_their_implementations(launcher: Launcher) -> None:
    done = launcher.bertha("chunnels", "--json")
    assert done.returncode == 0
    found = {kind["type"]: kind for kind in json.loads(done.stdout)}
    compress = {i["name"]: i for i in found["compress"]["implementations"]}
    assert compress["python"]["usable"] and compress["python"]["wires"] == ["zstd/1", "lz4/1"]
    assert all(i["usable"] is (i["reason"] is None) for t in found.values() for i in t["implementations"])
    assert "compress(level?, algorithm?)" in launcher.bertha("chunnels").stdout


@pytest.mark.parametrize(
    ("rule", "code", "said"),
    [
        ('dag = "compress(level=3) |> encrypt()"', 0, "1 rules, nothing wrong"),
        (
            'dag = "compress(level=99)"',
            1,
            "rule 1, dag: column 1: compress: level is 99, and should be from 1 to 19",
        ),
        ('dag = "nosuch()"', 1, "rule 1, dag: column 1: there is no chunnel type 'nosuch'"),
        ('dag = "compress(speed=1)"', 1, "rule 1, dag: column 1: compress: no argument 'speed'"),
        ('dag = "branch(by=payload[0] % 2, choices=[gone()])"', 1, "'gone'"),
        ('dag = "serialize()"', 1, "bertha_socket.new"),
        ('dag = "encrypt("', 2, "rule 1, dag: column 9: "),
        ('prohibit = ["xdp"]', 2, "rule 1, prohibit: there is no implementation 'xdp'"),
        ('prohibit = ["encrypt/nosuch"]', 2, "rule 1, prohibit: there is no implementation"),
        ('prohibit = ["encrypt/native", "*/python", "native", "elsewhere/tofino"]', 0, "nothing wrong"),
        ('proto = "sctp"', 2, "rule 1, proto: "),
        ('proto = "udp"\ndag = "frame() |> encrypt() |> reliable()"', 0, "nothing wrong"),
        ('proto = "udp"\ndag = \'mirror(to="/x") |> reliable()\'', 0, "nothing wrong"),
        ('proto = "udp"\ndag = "encrypt()"', 1, "rule 1, dag: over UDP: the program gives datagrams"),
        ('proto = "any"\ndag = "reliable()"', 1, "rule 1, dag: "),
    ],
)
def test_a_policy_file_is_checked(
    launcher: Launcher, tmp_path: Path, rule: str, code: int, said: str
) -> None:
    path = tmp_path / "bertha.toml"
    path.write_text(f"[[rule]]\n{rule}\n")
    done = launcher.bertha("policy", "check", str(path))
    assert done.returncode == code
    assert said in (done.stderr if code else done.stdout)
    assert str(path) in done.stdout + done.stderr
    as_json = launcher.bertha("policy", "check", "--json", str(path))
    assert as_json.returncode == code and bool(json.loads(as_json.stdout)["problems"]) is bool(code)


@pytest.mark.parametrize(
    ("dag", "column"),
    [
        ("prefer compress() |> encrypt()", 22),
        ("branch(by=payload[0], choices=[count(), prefer encrypt()])", 48),
    ],
)
def test_a_key_that_is_missing_is_a_warning(
    launcher: Launcher, tmp_path: Path, dag: str, column: int
) -> None:
    """Nothing is wrong with the file; but connections would be refused, or go without."""
    path, key = tmp_path / "bertha.toml", tmp_path / "key"
    path.write_text(f"[[rule]]\ndag = 'count()'\n[[rule]]\nprogram = 'x'\ndag = '{dag}'\n")
    words = ("policy", "check", str(path))
    done = launcher.bertha(*words)
    assert done.returncode == 0 and "2 rules, nothing wrong, 1 warnings" in done.stdout
    assert f"rule 2, dag: column {column}: warning: encrypt needs a key: {keys.NO_KEY}" in done.stderr
    assert len(json.loads(launcher.bertha(*words, "--json").stdout)["warnings"]) == 1
    keys.make(str(key))
    done = launcher.bertha(*words, env={"BERTHA_CLUSTER_KEY": str(key)})
    assert (done.returncode, done.stderr) == (0, "")
    for other in ('encrypt(cert="/a", key="/b")', "prohibit encrypt()", "count()"):
        path.write_text(f"[[rule]]\ndag = '{other}'\n")
        assert launcher.bertha(*words).stderr == "", other


def test_explain_says_what_would_run_each_chunnel(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "bertha.toml"
    path.write_text(
        '[[rule]]\nprogram = "my-server"\ndag = "prefer compress() |> encrypt()"\n'
        'prohibit = ["encrypt/native"]\n'
    )
    svg, key = tmp_path / "dag.svg", tmp_path / "key"
    keys.make(str(key))
    words = ("--policy", str(path), "--side", "server", "my-server", ":6379")
    env = {"BERTHA_CLUSTER_KEY": str(key)}
    found = json.loads(launcher.bertha("explain", "--json", "--svg", str(svg), *words, env=env).stdout)
    compress, encrypt = found["ends"][1]["chunnels"]
    assert (compress["type"], compress["need"]) == ("compress", "prefer")
    assert (encrypt["implementation"], encrypt["not"]["native"]) == ("python", "the rule prohibits it")
    assert found["pick"]["implementation"] == "tcp" and found["pick"]["carried"]
    assert "encrypt()" in "".join(ET.fromstring(svg.read_text()).itertext())
    lines = launcher.bertha("explain", *words).stdout
    assert "+- prefer compress()" in lines and "not native: the rule prohibits it" in lines


def test_explain_says_what_would_run_within_a_branch(launcher: Launcher, tmp_path: Path) -> None:
    path = tmp_path / "bertha.toml"
    path.write_text(
        "[[rule]]\n"
        "dag = 'branch(by=payload[0], choices=[count(), compress() |> limit(rate=9)]) |> compress()'\n"
        'prohibit = ["limit/*"]\npriority = { "compress/python" = 500 }\n'
    )
    done = launcher.bertha("explain", "--policy", str(path), "--json", "nginx", ":80")
    assert done.returncode == 1, "the second choice requires what the rule prohibits"
    found = json.loads(done.stdout)
    assert "limit in choices[1]" in found["negotiation"]["refusal"]["text"]
    branch, compress = found["ends"][0]["chunnels"]
    inner = [(c["in"], c["type"], c["implementation"]) for c in branch["inner"]]
    assert inner == [
        *[("choices[0]", "count", "python"), ("choices[1]", "compress", "python")],
        ("choices[1]", "limit", None),
    ]
    assert branch["inner"][2]["not"] == {"python": "the rule prohibits it"}
    assert compress["implementation"] == "python"
    assert found["ends"][0]["says"]["priority"] == {"compress/python": 500}
    text = launcher.bertha("explain", "--policy", str(path), "nginx", ":80").stdout
    assert "choices[1]: limit (require): none here" in text


def test_a_branch_is_drawn() -> None:
    dag = parse('a(x="<&>") |> branch(by=payload[0] % 2, choices=[b() |> c(), d()]) |> e()')
    assert as_text(dag) == [
        "program",
        '  +- a(x="<&>")',
        "  +- branch(by=payload[0] % 2)",
        "  |    [0]",
        "  |     +- b()",
        "  |     +- c()",
        "  |    [1]",
        "  |     +- d()",
        "  +- e()",
        "network",
    ]
    texts = [t for t in ET.fromstring(as_svg(dag)).itertext() if t != "" and "{" not in t]
    assert texts[1:] == [
        "program",
        'a(x="<&>")',
        "branch(by=payload[0] % 2)",
        "b()",
        "c()",
        "d()",
        "e()",
        "network",
    ]
