"""nginx with curl and wrk: workers that share one listener, sendfile, reload under load, proxying."""

from __future__ import annotations

import hashlib
import re
import signal
from collections import Counter
from pathlib import Path

import pytest

from bertha_socket.reasons import Reason, text_of
from tests.harness import (
    Host,
    Program,
    assert_balanced,
    assert_carried,
    assert_mostly_carried,
    connections,
    eventually,
    free_port,
    require_program,
)

pytestmark = pytest.mark.program

_FILES = {"one": 1, "kilo": 1024, "mega": 1_000_000, "twenty": 20_000_000}
# Two workers; nothing is written outside of the host's directory.
_CONFIGURATION = """
daemon off;
worker_processes 2;
pid {dir}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile {sendfile};
    keepalive_timeout 65;
    keepalive_requests 100000;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    client_max_body_size 100m;
    {more}
    server {{
        listen 127.0.0.1:{port};
        root {root};
        location /answer {{ return 200 "answer\\n"; }}
        {locations}
    }}
}}
"""


def _content(name: str) -> bytes:
    seed = hashlib.sha512(name.encode()).digest()
    return (seed * (_FILES[name] // len(seed) + 1))[: _FILES[name]]


def _start(
    host: Host, *, sendfile: str = "on", locations: str = "", more: str = "", shim: bool = True
) -> tuple[Program, int]:
    """A running nginx and its port."""
    nginx = require_program("nginx")
    port = free_port()
    own = host.dir / f"nginx-{port}"
    root = own / "root"
    root.mkdir(parents=True)
    # The workers of a root's nginx are another user (nobody), who must get at the files.
    for directory in (own, root):
        directory.chmod(0o755)
    host.open_to_other_users()
    for name in _FILES:
        (root / name).write_bytes(_content(name))
    configuration = own / "nginx.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            dir=own, root=root, port=port, sendfile=sendfile, locations=locations, more=more
        )
    )
    server = host.server([nginx, "-p", own, "-c", configuration, "-e", "stderr"], port, shim=shim)
    return server, port


def _curl(*words: str) -> list[str]:
    return [require_program("curl"), "-sS", "--fail", "--max-time", "15", *words]


def _check_file(path: Path, name: str) -> None:
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(_content(name)).digest(), name


@pytest.mark.parametrize("sendfile", ["on", "off"])
def test_files(host: Host, sendfile: str) -> None:
    """Files of one byte to 20 MB on one kept-alive connection."""
    _, port = _start(host, sendfile=sendfile)
    words: list[str] = []
    for name in _FILES:
        words += ["-o", str(host.dir / f"got-{name}"), f"http://127.0.0.1:{port}/{name}"]
    host.run(_curl(*words))
    for name in _FILES:
        _check_file(host.dir / f"got-{name}", name)
    log = host.finish()
    assert_carried(log, "curl", role="client", port=port)
    assert_carried(log, "nginx", role="server", port=port)
    assert_balanced(log, port=port)
    assert not log or sum(c.rx_bytes for c in connections(log, program="curl")) > sum(_FILES.values())


def test_connection_close(host: Host) -> None:
    """The server ends each connection after its answer: no byte before the end may be missing."""
    _, port = _start(host)
    for turn in range(3):
        for name in _FILES:
            into = host.dir / f"got-{name}-{turn}"
            host.run(_curl("-H", "Connection: close", "-o", str(into), f"http://127.0.0.1:{port}/{name}"))
            _check_file(into, name)
    log = host.finish()
    assert_carried(log, "curl", min_connections=12, role="client", port=port)
    assert_balanced(log, port=port, min_pairs=12)


def test_parallel_downloads(host: Host) -> None:
    """curl with many transfers at once, each on a connection of its own."""
    _, port = _start(host)
    words = ["--parallel", "--parallel-immediate", "--parallel-max", "30"]
    for turn in range(30):
        words += ["-o", str(host.dir / f"got-{turn}"), f"http://127.0.0.1:{port}/mega"]
    host.run(_curl(*words))
    for turn in range(30):
        _check_file(host.dir / f"got-{turn}", "mega")
    log = host.finish()
    assert_carried(log, "curl", min_connections=5, role="client", port=port)
    assert_balanced(log, port=port, min_pairs=5)


def test_upload_through_a_proxy(host: Host) -> None:
    """nginx as a client of nginx: a body of 20 MB up and a file of 20 MB down, through proxy_pass."""
    _, back = _start(host)
    upload = f"location /upload {{ proxy_pass http://127.0.0.1:{back}/answer; }}"
    down = f"location /down/ {{ proxy_pass http://127.0.0.1:{back}/; }}"
    _, front = _start(host, locations=upload + down)
    (host.dir / "big").write_bytes(_content("twenty"))
    answer = host.run(_curl("--data-binary", f"@{host.dir}/big", f"http://127.0.0.1:{front}/upload"))
    assert answer.strip() == "answer"
    for name in _FILES:
        host.run(_curl("-o", str(host.dir / f"got-{name}"), f"http://127.0.0.1:{front}/down/{name}"))
        _check_file(host.dir / f"got-{name}", name)
    log = host.finish()
    assert_carried(log, "curl", min_connections=5, role="client", port=front)
    assert_carried(log, "nginx", min_connections=5, role="client", port=back)
    assert_carried(log, "nginx", min_connections=5, role="server", port=back)


def _wrk(port: int, path: str, seconds: int, connections: int = 20, *more: str) -> list[str]:
    words = ["-t", "2", "-c", str(connections), "-d", f"{seconds}s", *more]
    return [require_program("wrk"), *words, f"http://127.0.0.1:{port}/{path}"]


def _assert_no_failed_request(report: str) -> None:
    total = re.search(r"(\d+) requests in", report)
    assert total, report
    assert int(total.group(1)) > 0, report
    assert "Socket errors" not in report, report
    assert "Non-2xx" not in report, report


@pytest.mark.parametrize("path", ["answer", "kilo", "mega"])
def test_load(host: Host, path: str) -> None:
    _, port = _start(host)
    _assert_no_failed_request(host.run(_wrk(port, path, 2)))
    log = host.finish()
    assert_carried(log, "wrk", min_connections=20, role="client", port=port)
    assert_carried(log, "nginx", min_connections=20, role="server", port=port)


def _wait_workers(server: Program, count: int) -> None:
    eventually(lambda: server.text().count("start worker process ") >= count, f"{count} workers started")


@pytest.mark.parametrize("policy", ["", '[[rule]]\nprefer = ["shm"]\n'], ids=["chosen", "shm"])
def test_reload_under_load(host: Host, policy: str) -> None:
    """`nginx -s reload` while clients come and go: old workers finish, new ones take over, nothing fails."""
    if policy:
        host.set_policy(policy)
    server, port = _start(host)
    own = host.dir / f"nginx-{port}"
    load = host.spawn(_wrk(port, "kilo", 8, 10, "-H", "Connection: close"))
    reload_command = [require_program("nginx"), "-p", own, "-c", own / "nginx.conf", "-e", "stderr"]
    for turn in range(1, 4):
        host.run([*reload_command, "-s", "reload"])
        _wait_workers(server, 2 * (turn + 1))
        assert host.run(_curl(f"http://127.0.0.1:{port}/answer")).strip() == "answer"
    assert load.running, "the load ended before the reloads did"
    report = load.wait()
    total = re.search(r"(\d+) requests in", report)
    assert total, report
    assert "Socket errors" not in report, report
    assert "Non-2xx" not in report, report
    log = host.finish()
    assert_carried(log, "curl", min_connections=3, role="client", port=port)
    count = int(total.group(1))
    if policy:
        assert_mostly_carried(log, "wrk", 0.99, min_connections=count, role="client", port=port)
        assert_mostly_carried(log, "nginx", 0.99, min_connections=count, role="server", port=port)
    elif not host.rehearse:  # each over after one request: TCP's after the first some hundred
        ways = Counter(
            (c.implementation, c.reason) for c in connections(log, program="wrk", role="client", port=port)
        )
        assert ways["shm", None] >= 200 and ways["tcp", text_of(Reason.BRIEF)] >= 0.9 * count, ways


def test_graceful_quit(host: Host) -> None:
    """SIGQUIT while a slow transfer is on: it completes, although the listener is gone."""
    server, port = _start(host)
    into = host.dir / "slow"
    slow = host.spawn(
        _curl("--limit-rate", "8M", "-o", str(into), f"http://127.0.0.1:{port}/twenty"), label="slow"
    )
    eventually(lambda: into.exists() and into.stat().st_size > 0, "the beginning of the transfer")
    host.stop(server, number=signal.SIGQUIT)
    slow.wait()
    _check_file(into, "twenty")
    log = host.finish()
    assert_carried(log, "curl", role="client", port=port)


def test_plain_clients_of_a_shimmed_server(host: Host) -> None:
    _, port = _start(host)
    _assert_no_failed_request(host.run(_wrk(port, "kilo", 1), shim=False))
    host.run(_curl("-o", str(host.dir / "got"), f"http://127.0.0.1:{port}/twenty"), shim=False)
    _check_file(host.dir / "got", "twenty")
    log = host.finish()
    assert_carried(log, "nginx", "tcp", min_connections=20, role="server", port=port)
