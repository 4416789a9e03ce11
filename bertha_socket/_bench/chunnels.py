"""redis through chunnels that the server's policy dictates, against redis's own TLS and plain TCP.

Between two hosts (namespaces joined by veth, each with its own agent and its own carrier), where only the
server has a policy and redis-benchmark is a plain program under `bertha-run`.  And on one host with one
agent.  Both kinds of TLS authenticate both ends by an Ed25519 certificate.

A row is where the two programs are, and how many clients ask, `P16`: 16 requests at once each.  With four and
eight clients that wait for each answer the carriers cost most: too many to look for each other's bytes, too
few to be served many at a time (decision 0024).
"""

from __future__ import annotations

import os
from pathlib import Path

from bertha_socket._bench import interleave, netns, tools
from bertha_socket._bench.redispair import TESTS, RedisServer, add_cells
from bertha_socket._bench.report import Report, Target
from bertha_socket._bench.stage import Shim, Stage
from bertha_socket._bench.variants import Variant

PROGRAMS = ("redis-server", "redis-benchmark", "openssl")
_PLAIN = "tcp"
_OWN_TLS = "redis-tls"
_ENCRYPT = "encrypt"
_DAGS = {_ENCRYPT: "encrypt()", "compress+encrypt": "compress(level=3) |> encrypt()"}
TWO, ONE = "two", "one"
#: Row: where, and how redis-benchmark asks.
ROWS: dict[str, tuple[str, dict[str, int]]] = {
    "two/c50": (TWO, {"clients": 50, "pipeline": 1}),
    "two/c1": (TWO, {"clients": 1, "pipeline": 1}),
    "two/c4": (TWO, {"clients": 4, "pipeline": 1}),
    "two/c8": (TWO, {"clients": 8, "pipeline": 1}),
    "two/c50-P16": (TWO, {"clients": 50, "pipeline": 16}),
    "one/c50": (ONE, {"clients": 50, "pipeline": 1}),
    "one/c1": (ONE, {"clients": 1, "pipeline": 1}),
    "one/c50-P16": (ONE, {"clients": 50, "pipeline": 16}),
}
ROW_NAMES = tuple(ROWS)
_QUICK = ("two/c50", "one/c50")


def _certificate(stage: Stage, host: netns.Host) -> tuple[Path, Path]:
    certificate, key = stage.path(".pem"), stage.path(".key")
    command = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "2", "-subj", "/CN=bench"]
    stage.run([*command, "-out", str(certificate), "-keyout", str(key)], host)
    return certificate, key


def _hosts(stage: Stage, hosts: str) -> tuple[netns.Host, netns.Host]:
    """Client's and server's."""
    if hosts == TWO:
        return stage.two_hosts()
    host = stage.one_host()
    return host, host


def _chosen(options: interleave.Options) -> list[str]:
    if not options.only:
        return list(_QUICK if options.quick else ROW_NAMES)
    return [row for row in ROW_NAMES if options.chooses(row)]


def _fill(
    stage: Stage, report: Report, hosts: str, configurations: list[dict[str, int]], seconds: float, least: int
) -> None:
    """The cells of one of the two settings."""
    try:
        client, server = _hosts(stage, hosts)
    except tools.Unavailable as missing:
        report.skipped[f"{hosts} hosts"] = str(missing)
        return
    stage.cluster_key = stage.path(".cluster")
    stage.cluster_key.touch(mode=0o600)
    stage.cluster_key.write_bytes(os.urandom(32))
    pairs = [
        (Variant(_PLAIN, "plain TCP"), RedisServer(stage, server)),
        (Variant(_OWN_TLS, "redis's own TLS"), RedisServer(stage, server, tls=_certificate(stage, server))),
    ]
    for name, dag in _DAGS.items():
        shim = Shim(policy=stage.policy(side="server", dag=dag))
        serving = RedisServer(stage, server, shim)
        pairs.append((Variant(name, f"bertha-run: {dag}", shim=Shim(), expects=name), serving))
    for variant, serving in pairs:
        place = {"hosts": hosts}
        add_cells(stage, report, variant, serving, configurations, seconds, least, client, place)


def run(options: interleave.Options) -> Report:
    rounds = options.rounds_or(3, 7)
    seconds = (0.4 if options.quick else 1.0) * options.scale
    least = options.amount(2000, 10000, least=200)
    report = Report(
        "chunnels",
        "redis-benchmark SET and GET: plain, redis's own TLS, encrypt, compress |> encrypt",
        options={"rounds": rounds, "seconds_per_test": seconds},
    )
    rows = [ROWS[name] for name in _chosen(options)]
    with Stage(own_agents=True) as apart, Stage() as together:
        for stage, hosts in ((apart, TWO), (together, ONE)):
            configurations = [configuration for where, configuration in rows if where == hosts]
            if configurations:
                _fill(stage, report, hosts, configurations, seconds, least)
        interleave.run(report, rounds, options)
    for hosts, configuration in rows:
        _ratios(report, hosts, configuration)
    return report


def _ratios(report: Report, hosts: str, configuration: dict[str, int]) -> None:
    params = configuration | {"hosts": hosts}
    for name in _DAGS:
        for under in (_OWN_TLS, _PLAIN):
            for test in TESTS:
                what = f"c{configuration['clients']} P{configuration['pipeline']}, {hosts} host"
                wanted = (name, under, hosts) == (_ENCRYPT, _OWN_TLS, TWO)
                report.ratio(
                    f"redis {test.upper()} {what}{'s' if hosts == TWO else ''}: {name}/{under}",
                    f"{test}_rps",
                    (name, params),
                    (under, params),
                    Target(1.0, at_least=True, source="issue 3") if wanted else None,
                )
