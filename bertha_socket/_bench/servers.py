"""memcached and nginx under load: requests per second over TCP, a native unix socket and shm.

memcached has one thread and is asked by our own closed-loop client (50 connections, one `get` each); nginx
has one worker, serves a file of 1 KiB (`sendfile on`) and a bare answer, and is asked by wrk (16 connections,
one thread).  Other people's programs, as they come.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bertha_socket._bench import interleave, netns, tools, variants
from bertha_socket._bench.redispair import processor_ns
from bertha_socket._bench.report import Cell, Report, Sample
from bertha_socket._bench.stage import Failed, Running, Shim, Stage
from bertha_socket._bench.variants import Variant

MEMCACHED_NAMES = (variants.TCP, variants.UNIX_SOCKET, variants.SHM, variants.SHM_NOSPIN)
NGINX_NAMES = (variants.TCP, variants.SHM, variants.SHM_NOSPIN)
_UNITS = {"rate": "1/s", "server_cpu": "us/request"}
_VALUE = "v" * 100
_NGINX = """\
daemon off;
{user}
worker_processes 1;
pid {place}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  keepalive_requests 100000000;
  client_body_temp_path {place}/body;
  proxy_temp_path {place}/proxy;
  fastcgi_temp_path {place}/fastcgi;
  uwsgi_temp_path {place}/uwsgi;
  scgi_temp_path {place}/scgi;
  server {{
    listen {address}:{port};
    root {place};
    location = /bare {{ return 200 "ok"; }}
  }}
}}
"""


class Memcached:
    """A memcached with one thread, and load on it."""

    def __init__(self, stage: Stage, programs: dict[str, Path], host: netns.Host, variant: Variant) -> None:
        self.stage, self.host, self.variant, self.load = stage, host, variant, programs["load"]
        port, socket = stage.port(host), stage.path(".sock")
        self.target = variant.target(host.address, port, socket)
        where = ["-s", str(socket)] if variant.unix else ["-l", host.address, "-p", str(port)]
        argv = [tools.find("memcached"), "-t", "1", "-u", "root", "-U", "0", *where]
        # It says that it listens only with -vv, with which it writes a line for each request, too.
        self.running = stage.start(argv, host, ready="", shim=variant.shim)
        stage.until(lambda: socket.exists() if variant.unix else _listens(self.running.pid, port))

    def argv(self, seconds: float) -> list[str]:
        answer = f"VALUE k 0 {len(_VALUE)}\r\n{_VALUE}\r\nEND\r\n"
        argv = [str(self.load), self.target, "--clients", "50", "--milliseconds", str(int(seconds * 1000))]
        argv += [
            "--first",
            f"set k 0 0 {len(_VALUE)}\\r\\n{_VALUE}\\r\\n",
            "--first-reply",
            str(len("STORED\r\n")),
        ]
        return [*argv, "--request", "get k\\r\\n", "--reply", str(len(answer))]

    def measure(self, seconds: float, shim: Shim | None = None) -> Sample:
        before = processor_ns(self.running.pid)
        said = json.loads(self.stage.run(self.argv(seconds), self.host, shim=shim or self.variant.shim))
        spent = processor_ns(self.running.pid) - before
        return Sample(
            {
                "rate": said["requests"] / said["wall_ns"] * 1e9,
                "server_cpu": spent / 1000 / max(1, said["requests"]),
                "spurious": said["spurious"],
            }
        )


def _listens(pid: int, port: int) -> bool:
    """Whether something listens on a TCP port in the namespace of a process (proc_net_tcp(5))."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in lines)


class Nginx:
    """An nginx with one worker, and wrk on it."""

    def __init__(self, stage: Stage, host: netns.Host, variant: Variant) -> None:
        self.stage, self.host, self.variant = stage, host, variant
        place = stage.path(".nginx")
        place.mkdir(mode=0o755)
        (place / "file").write_text("x" * 1024, encoding="ascii")
        self.port = stage.port(host)
        config = place / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""  # the worker has to reach its files
        text = _NGINX.format(user=user, place=place, address=host.address, port=self.port)
        config.write_text(text, encoding="utf-8")
        argv = [tools.find("nginx"), "-p", str(place), "-c", str(config), "-e", "stderr"]
        self.running: Running = stage.start(argv, host, ready="start worker process ", shim=variant.shim)

    def argv(self, path: str, seconds: float) -> list[str]:
        url = f"http://{self.host.address}:{self.port}/{path}"
        return [tools.find("wrk"), "-t", "1", "-c", "16", "-d", f"{max(1, round(seconds))}s", url]

    def measure(self, path: str, seconds: float, shim: Shim | None = None) -> Sample:
        said = self.stage.run(self.argv(path, seconds), self.host, shim=shim or self.variant.shim)
        found = re.search(r"Requests/sec:\s+([\d.]+)", said)
        if found is None or "Non-2xx" in said or "Socket errors" in said:
            raise Failed(f"wrk did not get its answers from nginx: {said.strip()}")
        return Sample({"rate": float(found.group(1))})


def _cell(
    stage: Stage, report: Report, variant: Variant, what: str, use: Callable[[Shim | None], Sample]
) -> None:
    """Every round is logged and checked, so it needs no proof before."""
    measure = partial(variants.measured, stage, report, variant, use)
    report.cells.append(Cell(variant.name, {"what": what}, measure, _UNITS))


def run_memcached(options: interleave.Options) -> Report:
    rounds = options.rounds_or(3, 7)
    seconds = (0.4 if options.quick else 1.0) * options.scale
    report = Report(
        "memcached",
        f"memcached with one thread, 50 connections that get a value of {len(_VALUE)} B",
        options={"rounds": rounds, "seconds": seconds},
    )
    programs = tools.build()
    with Stage() as stage:
        host = stage.one_host()
        for variant in variants.standard(stage, MEMCACHED_NAMES, report):
            server = Memcached(stage, programs, host, variant)
            report.commands[variant.name] = " ".join(server.argv(seconds))
            _cell(stage, report, variant, "get", partial(server.measure, seconds))
        interleave.run(report, rounds, options)
    _ratios(report, ("get",), (variants.TCP, variants.UNIX_SOCKET))
    return report


def run_nginx(options: interleave.Options) -> Report:
    rounds = options.rounds_or(3, 7)
    report = Report(
        "nginx",
        "nginx with one worker, wrk with 16 connections: a file of 1 KiB, and a bare answer",
        options={"rounds": rounds, "seconds": 1},
    )
    with Stage() as stage:
        host = stage.one_host()
        for variant in variants.standard(stage, NGINX_NAMES, report):
            server = Nginx(stage, host, variant)
            report.commands[variant.name] = " ".join(server.argv("file", 1))
            for path in ("file", "bare"):
                _cell(stage, report, variant, path, partial(server.measure, path, 1))
        report.cells.sort(key=lambda cell: str(cell.params["what"]), reverse=True)
        interleave.run(report, rounds, options)
    _ratios(report, ("file", "bare"), (variants.TCP,))
    return report


def _ratios(report: Report, whats: tuple[str, ...], unders: tuple[str, ...]) -> None:
    for what in whats:
        params = {"what": what}
        for name in (variants.SHM, variants.SHM_NOSPIN):
            for under in unders:
                report.ratio(
                    f"{report.bench} {what}: {name}/{under}", "rate", (name, params), (under, params)
                )
