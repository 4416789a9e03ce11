"""`bertha bench`: every bench works, its JSON has what it should, and a lying label is caught.

Nothing here looks at how fast anything was.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import pytest

from bertha_socket._bench import (
    ceiling,
    connlog,
    datagrams,
    host,
    netns,
    peers,
    profile,
    registry,
    system_calls,
    tools,
    variants,
)
from bertha_socket._bench.report import Report, Sample
from bertha_socket._bench.stage import Failed, Stage
from bertha_socket.cli import bench

TINY = ["--rounds", "1", "--quick", "--scale", "0.02"]
# What is measured without any shim, so that it must be there wherever the tests run.
PLAIN_CELLS = {
    "fig3": {"tcp-nagle", "tcp", "unix-socket"},
    "redis": {"tcp", "unix-socket"},
    "bulk": {"tcp"},
    "setup": {"tcp"},
    "plain-overhead": {"none", "control"},
    "idle": {"tcp"},
    "pingpong": {"tcp", "unix-socket"},
    "memcached": {"tcp", "unix-socket"},
    "nginx": {"tcp"},
    "chunnels": {"tcp", "redis-tls"},
    "speed": {"tcp", "udp"},
    "new": set(),
    "python": {"tcp"},
    "chunnel-cost": {"chunnel", "library"},
    "chunnel-setup": {"tcp"},
    "datagrams": {"udp"},
    "ceiling": {"bare", "tcp"},
}
# Of the benches that have rows: one of each kind, since all of them would take too long here.
ROWS = {
    "speed": (
        "pingpong/two",
        "redis/c50",
        "connect/w1",
        "asyncio/c1",
        "waits/poll",
        "crowd/10000",
        "udp/two",
        "idle",
    ),
    "chunnels": ("two/c4", "one/c50"),
    "python": ("asyncio/c1",),
    "datagrams": ("reliable", "compress+encrypt"),
    "ceiling": ("calls", "pingpong/two", "redis/c50"),
}
# Variants whose programs have no shim, or (of plain-overhead) whose connections are nobody's to check.
PLAIN = {"bare", "tcp", "tcp-alone", "tcp-nagle", "udp", "unix-socket", "none", "control", "redis-tls"}
METRICS = {
    "fig3": {"request_p50", "with_setup_p50", "setup_p50"},
    "redis": {"get_rps", "set_rps", "get_p50", "get_p99"},
    "bulk": {"rate"},
    "setup": {"rate"},
    "idle": {"descriptors", "memory"},
    "pingpong": {"p50", "p99"},
    "memcached": {"rate", "server_cpu"},
    "nginx": {"rate"},
    "chunnels": {"get_rps", "set_rps", "get_p50", "get_p99"},
}


def _needs(name: str) -> None:
    if name in ("chunnel-setup", "datagrams") and not netns.available():
        pytest.skip("two network namespaces need root")
    for program in ("cc", *registry.programs(name)):
        try:
            tools.find(program)
        except tools.Unavailable as missing:
            pytest.skip(str(missing))


def _descendants() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.fixture
def run_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[int, dict[str, Any]]]]:
    """Run one bench in its smallest form; gives the exit code and the JSON."""
    short = Path(tempfile.mkdtemp(prefix="bb-"))  # pytest's are too long for an agent's socket below them
    monkeypatch.setenv("TMPDIR", str(short))
    monkeypatch.setattr("tempfile.tempdir", str(short))

    def run(name: str, *more: str) -> tuple[int, dict[str, Any]]:
        _needs(name)
        out = tmp_path / "out.json"
        before = _descendants()
        code = bench.main([name, *TINY, "--json", str(out), *more])
        assert _descendants() <= before
        assert not list(short.glob("bertha-bench-*"))
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return code, found

    yield run
    shutil.rmtree(short)


def _can_draw(name: str) -> bool:
    """There is matplotlib, and something to compare."""
    if find_spec("matplotlib") is None:
        return False
    try:
        tools.shim_library()
    except tools.Unavailable:
        return name in ("fig3", "pingpong", "plain-overhead")
    return True


def _fig3_has_every_cell_and_percentile(found: dict[str, Any]) -> None:
    cells = [cell for cell in found["cells"] if cell["variant"] == "tcp-nagle"]
    cores = {"one", "two"} if len(host.cpus()) > 1 else {"one"}
    assert {(c["params"]["size"], c["params"]["cores"]) for c in cells} == {
        (size, core) for size in (8, 256, 10240) for core in cores
    }
    for cell in cells:
        connections = found["options"]["connections_per_round"]
        assert cell["pooled_us"]["request"]["samples"] == 3 * connections
        assert cell["pooled_us"]["with_setup"]["samples"] == connections
        marks = [cell["pooled_us"]["request"][f"p{p}"] for p in (5, 25, 50, 75, 95)]
        assert marks == sorted(marks)
        assert marks[0] > 0
    if netns.available():
        assert not any("loopback" in note for note in found["notes"])


def _chunnels_has_what_was_chosen(found: dict[str, Any]) -> None:
    """Those rows, in each variant; and each of two hosts has its target."""
    rows = {("one", 50, 1)} | ({("two", 4, 1)} if netns.available() else set())
    variants = ("tcp", "redis-tls", "encrypt", "compress+encrypt")
    params = [(c["variant"], c["params"]) for c in found["cells"]]
    assert sorted((v, p["hosts"], p["clients"], p["pipeline"]) for v, p in params) == sorted(
        (variant, *row) for variant in variants for row in rows
    )
    wanted = {f["what"] for f in found["figures"] if f["target"]}
    assert wanted == {
        f"redis {test} c{clients} P{pipeline}, two hosts: encrypt/redis-tls"
        for test in ("SET", "GET")
        for hosts, clients, pipeline in rows
        if hosts == "two"
    }


def test_a_full_run_of_chunnels_has_the_rows_that_are_worst_for_us() -> None:
    assert {"two/c1", "two/c4", "two/c8", "two/c50", "two/c50-P16"} <= set(registry.rows("chunnels"))


@pytest.mark.program
@pytest.mark.parametrize("name", list(registry.BENCHES))
def test_every_bench(name: str, run_bench: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path) -> None:
    drawn = tmp_path / "plot.png"
    plot = ["--plot", str(drawn)] if _can_draw(name) else []
    rows = [word for row in ROWS.get(name, ()) for word in ("--only", row)]
    code, found = run_bench(name, *plot, *rows)

    assert found["failures"] == []
    if plot:
        assert drawn.read_bytes().startswith(b"\x89PNG")
    if name == "fig3":
        _fig3_has_every_cell_and_percentile(found)
    assert code == 0
    assert found["schema"] == 1
    assert found["bench"] == name
    for key in ("kernel", "cpu_model", "cpus", "python", "bertha_socket", "programs"):
        assert found["host"][key] is not None
    cells = found["cells"]
    names = {cell["variant"] for cell in cells}
    assert names >= PLAIN_CELLS[name]
    for cell in cells:
        assert cell["metrics"].keys() >= METRICS.get(name, set())
        for metric in cell["metrics"].values():
            assert metric["rounds"] == 1
            assert metric["low"] <= metric["median"] <= metric["high"]
    # Whatever was called shm (or unix) was that, by the connection log, and nothing else.
    for variant, counts in found["carried"].items():
        if variant in names and variant.startswith(("shm", "unix")) and variant != "unix-socket":
            assert set(counts) <= {variant.partition("-")[0], connlog.UNUSED}
            assert counts[variant.partition("-")[0]] > 0
        if variant in names and ("encrypt" in variant or "compress" in variant):
            assert set(counts) == {variant}
    if name == "speed" and {"shm", "udp"} <= names and netns.available():
        by_kernel = {
            cell["variant"]: cell["metrics"]["by_kernel"]["median"]
            for cell in cells
            if cell["params"]["row"] == "udp/two"
        }
        assert by_kernel["udp"] == 2
        assert by_kernel["shm"] < 2
    if name == "chunnel-cost":
        assert sorted((c["variant"], c["params"]["kind"], c["params"]["size"]) for c in cells) == sorted(
            product(
                ("chunnel", "library"),
                ("zstd", "lz4", "encrypt", "records", "frame", "reliable"),
                (64, 1024, 16384, 65536),
            )
        )
        wanted = {f["what"].split("(")[0].split(",")[0] for f in found["figures"] if f["target"]}
        assert wanted == {"compress", "encrypt"}
        return
    if name == "new":
        assert names == {"new", "bare-cffi", "socket"}
        assert set(found["carried"]["shm"]) == {"shm"}
        return
    if name == "datagrams":
        assert {v: set(counts) for v, counts in found["carried"].items()} == {v: {v} for v in names - {"udp"}}
        chains = ("reliable", "compress+encrypt")
        assert names == {"udp", *(f"{chain}-{how}" for chain in chains for how in ("native", "python"))}
        one = [c["metrics"] for c in cells if c["params"]["outstanding"] == 1]
        assert len(one) == 5 and all({"rate", "megabytes", "p50", "p99"} <= m.keys() for m in one)
        return
    for variant in names - PLAIN:
        assert sum(found["carried"][variant].values()) > 0
    try:
        tools.shim_library()
    except tools.Unavailable:
        return
    if name == "chunnels":
        _chunnels_has_what_was_chosen(found)
    if name.startswith("chunnel"):
        assert "compress+encrypt" in names
    elif name != "plain-overhead":
        assert "shm" in names


# A stand-in for bertha-run that runs the program as it is and writes what it was told to into the log.
LIAR = """\
import json, os, sys
log = os.environ.get("BERTHA_CONNLOG")
if log:
    entry = {"role": "client", "plain": PLAIN, "reason": "no agent", "chunnels": CHUNNELS,
             "tx_bytes": 1, "rx_bytes": 1}
    with open(log, "a") as f:
        f.write(json.dumps(entry) + "\\n")
argv = sys.argv[sys.argv.index("--") + 1:]
os.execv(argv[0], argv)
"""


def _pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, implementation: str | None) -> None:
    chunnels = [{"type": "local_or_remote", "implementation": implementation, "where": "host"}]
    script = tmp_path / "liar.py"
    text = LIAR.replace("PLAIN", str(implementation is None))
    script.write_text(text.replace("CHUNNELS", str(chunnels if implementation else [])), encoding="utf-8")
    monkeypatch.setattr(tools, "bertha_run", lambda: [sys.executable, str(script)])
    monkeypatch.setattr(tools, "shim_library", lambda: script)


@pytest.mark.program
def test_plain_called_shm_is_a_failure(
    run_bench: Callable[..., tuple[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _pretend(monkeypatch, tmp_path, None)
    code, found = run_bench("pingpong")
    assert code == 1
    assert any("expected shm" in failure and "no agent" in failure for failure in found["failures"])
    assert any("expected unix" in failure for failure in found["failures"])
    assert {cell["variant"] for cell in found["cells"]} == {"tcp", "unix-socket"}


@pytest.mark.program
def test_a_log_that_says_shm_lets_shm_be_measured(
    run_bench: Callable[..., tuple[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _pretend(monkeypatch, tmp_path, "shm")
    code, found = run_bench("pingpong")
    assert code == 1
    assert found["carried"]["shm"].keys() == {"shm"}
    assert any(figure["what"].endswith("shm/tcp") for figure in found["figures"])
    # And what is called unix is a failure then.
    assert [failure for failure in found["failures"] if "expected unix" not in failure] == []
    assert "unix" not in {cell["variant"] for cell in found["cells"]}


def _line(chain: datagrams.Chain, **other: Any) -> dict[str, Any]:
    """The connection log's, where that chain carried it; `other`: what is otherwise."""
    chunnels = [{"type": t, "implementation": i, "where": "host"} for t, i in chain.chunnels]
    line = {"chunnels": chunnels, "plain": False, "reason": None, "carried_by": chain.implementation}
    return line | other


def test_a_chain_of_datagrams_is_what_the_log_says() -> None:
    chain = datagrams.Chain("compress+encrypt", "native")
    assert [t for t, _ in chain.chunnels] == ["frame", "compress", "encrypt", "reliable", "local_or_remote"]
    good = _line(chain)
    assert chain.problem(good) is None
    lies = (
        _line(chain, plain=True),
        _line(chain, chunnels=good["chunnels"][1:]),
        _line(chain, chunnels=[]),
        _line(chain, carried_by="python"),
        _line(chain, beside="python"),
        _line(datagrams.Chain("compress+encrypt", "python")),
        _line(datagrams.Chain("encrypt", "native")),
    )
    assert all(chain.problem(line) for line in lies)


@pytest.mark.program
def test_every_system_call_is_counted(tmp_path: Path) -> None:
    """Also the first ones: nothing runs before perf counts."""
    refusal = system_calls.unavailable()
    if refusal is not None:
        pytest.skip(refusal)
    script = "import os\ninput()\nfor _ in range(1000): os.getppid()\nprint('done')\ninput()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with system_calls.counting([process.pid], tmp_path / "perf"):
            process.stdin.write(b"go\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"done\n"
        process.stdin.write(b"go\n")
    assert 1000 <= system_calls.counted(tmp_path / "perf") < 2000


def test_perf_that_counts_nobody_is_a_failure(tmp_path: Path) -> None:
    if system_calls.unavailable() is not None:
        pytest.skip("perf counts nothing here")
    with pytest.raises(Failed, match="perf"), system_calls.counting([2**22 - 1], tmp_path / "perf"):
        pass


@pytest.mark.program
def test_a_program_that_fails_is_named(tmp_path: Path) -> None:
    programs = tools.build()
    with Stage() as stage:
        host = stage.one_host()
        with pytest.raises(Failed, match="Connection refused"):
            stage.run([str(programs["ping"]), f"127.0.0.1:{stage.port(host)}"], host)
        with pytest.raises(Failed, match="not a mode"):
            stage.start(
                [str(programs["server"]), "no-such", f"127.0.0.1:{stage.port(host)}"], host, ready="never"
            )


def test_peers_are_found_on_path_and_put_before_the_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a stand-in on PATH; the library is not there."""
    fake = tmp_path / "bin" / "ip2unix"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/said\nshift 2\nexec "$@"\n', encoding="ascii")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(peers, "_PLACES", ())
    monkeypatch.setattr(peers, "_LIBRARY", "libno-such-library.so")
    report = Report("x", "y")
    with Stage() as stage:
        (found,) = peers.installed(stage, report)
        assert found.name == "ip2unix"
        host = stage.one_host()
        command = stage.command(["redis-server", "--port", "1"], host, None, found.shim)
        rule = found.shim.instead[-1] if found.shim else ""
        assert command[-6:] == [str(fake), "-r", rule, "redis-server", "--port", "1"]
        assert rule == f"tcp,path={Path(rule.partition('=')[2]).parent}/%a-%p.sock"
        assert stage.run(["/bin/echo", "hello"], host, shim=found.shim) == "hello\n"
        assert (tmp_path / "said").read_text(encoding="ascii") == f"-r {rule} /bin/echo hello\n"
        assert "BERTHA_AGENT" not in stage.environment(found.shim)
    assert "libno-such-library.so is neither" in report.skipped["socket_wrapper"]


def test_socket_wrapper_is_preloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libsocket_wrapper.so").touch()
    monkeypatch.setattr(peers, "_PLACES", (str(tmp_path),))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(tools, "find", lambda program: f"/usr/bin/{program}")
    report = Report("x", "y")
    with Stage() as stage:
        (found,) = peers.installed(stage, report)
        assert found.shim is not None
        assert found.shim.instead[:2] == ("/usr/bin/env", f"LD_PRELOAD={tmp_path}/libsocket_wrapper.so")
        assert found.shim.instead[3] == "SOCKET_WRAPPER_DEFAULT_IFACE=1"
    assert report.skipped == {"ip2unix": "ip2unix is not on PATH"}


def test_parts_of_a_profile() -> None:
    names = {
        "libbertha_shim.so": "ours",
        "_direct.abi3.so": "ours",
        "python3.11": "interpreter",
        "libpython3.12.so.1.0": "interpreter",
        "_asyncio.cpython-311-x86_64-linux-gnu.so": "interpreter",
        "libc.so.6": "libc",
        "libc-2.31.so": "libc",
        "[vdso]": "libc",
        "[kernel.kallsyms]": "kernel",
        "[veth]": "kernel",
        "[unknown]": "other",
        "redis-server": "other",
    }
    assert {name: profile.kind_of(name) for name in names} == names


def test_what_a_row_could_reach() -> None:
    """Its ends at work at the same time, in turn, and as many processes on two processors."""
    sample = Sample({"cpu": 10.0})
    found = (Counter(other=3, libc=1, ours=2), Counter(other=1, kernel=2, ours=1))
    names = ("redis/c50", "redis/c1", "postgres/select")
    values = {name: ceiling.shared_out(name, sample, found, 2).values for name in names}
    assert [round(values[name]["without_ours"]) for name in names] == [250_000, 142_857, 285_714]
    assert [round(values[name]["without_kernel"]) for name in names] == [250_000, 200_000, 400_000]
    assert values["redis/c50"]["server_ours"] == 2.0 and values["redis/c50"]["client_kernel"] == 2.0
    assert round(ceiling.shared_out("redis/c50", sample, found, 1).values["without_ours"]) == 142_857


def test_a_peer_whose_bytes_went_by_ip_is_a_failure() -> None:
    class Host(netns.Host):
        """5000 bytes come in each round."""

        octets = 0

        def kernel_octets(self) -> int:
            self.octets += 5000
            return self.octets

    variant = variants.Variant("ip2unix", "ip2unix")
    for requests, failures in ((1000, 0), (10, 1)):
        report, sample = Report("x", "y"), Sample({"requests": requests})
        peers.measured(report, variant, Host("127.0.0.1"), lambda _shim, sample=sample: sample)
        assert len(report.failures) == failures


def test_programs_are_built_once(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    first = tools.build(tmp_path)
    times = {name: path.stat().st_mtime_ns for name, path in first.items()}
    assert tools.build(tmp_path) == first
    assert {name: path.stat().st_mtime_ns for name, path in first.items()} == times
    assert set(first) == set(tools.PROGRAMS)


def test_without_a_cache_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(tools.Unavailable, match="set XDG_CACHE_HOME"):
        tools.build(tmp_path / "file")


def test_without_a_compiler_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(tools.Unavailable, match="no-such-compiler is not installed"):
        tools.build(tmp_path)


def test_list_and_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(registry.BENCHES)
    assert bench.main(["no-such"]) == 2
    assert "no such bench: no-such" in capsys.readouterr().err
    assert bench.main(["pingpong", "--json", "/no/such/dir/x.json"]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert bench.main(["pingpong", "--rounds", "-1"]) == 2
    capsys.readouterr()
    assert bench.main(["speed", "--only", "no-such"]) == 2
    assert "speed has no row no-such: it has pingpong/two" in capsys.readouterr().err
    assert bench.main(["pingpong", "--only", "redis"]) == 2
