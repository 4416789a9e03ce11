"""redis through chunnels that a policy dictates, against redis's own TLS and plain TCP.

One host, one agent: the carrier does the work of both ends in one process, which two hosts would share out.
Both kinds of TLS authenticate both ends by an Ed25519 certificate.
"""

from __future__ import annotations

import os
from pathlib import Path

from bertha_socket._bench import interleave, netns
from bertha_socket._bench.redispair import TESTS, RedisServer, add_cells
from bertha_socket._bench.report import Report, Target
from bertha_socket._bench.stage import Shim, Stage
from bertha_socket._bench.variants import Variant

PROGRAMS = ("redis-server", "redis-benchmark", "openssl")
_PLAIN = Variant("tcp", "plain TCP")
_OWN_TLS = Variant("redis-tls", "redis's own TLS")
_ENCRYPT = "encrypt"
_BOTH = "compress+encrypt"
CONFIGURATIONS: tuple[dict[str, int], ...] = (
    {"clients": 50, "pipeline": 1},
    {"clients": 1, "pipeline": 1},
    {"clients": 50, "pipeline": 16},
)


def _certificate(stage: Stage, host: netns.Host) -> tuple[Path, Path]:
    certificate, key = stage.path(".pem"), stage.path(".key")
    command = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "2", "-subj", "/CN=bench"]
    stage.run([*command, "-out", str(certificate), "-keyout", str(key)], host)
    return certificate, key


def _dictated(stage: Stage, name: str, dag: str) -> Variant:
    return Variant(name, f"bertha-run: {dag}", shim=Shim(policy=stage.policy(dag=dag)), expects=name)


def run(options: interleave.Options) -> Report:
    rounds = options.rounds_or(3, 7)
    seconds = (0.4 if options.quick else 1.0) * options.scale
    least = options.amount(2000, 10000, least=200)
    configurations = CONFIGURATIONS[:1] if options.quick else CONFIGURATIONS
    report = Report(
        "chunnels",
        "redis-benchmark SET and GET: plain, redis's own TLS, encrypt, compress |> encrypt",
        options={"rounds": rounds, "seconds_per_test": seconds},
    )
    with Stage() as stage:
        host = stage.one_host()
        stage.cluster_key = stage.path(".cluster")
        stage.cluster_key.touch(mode=0o600)
        stage.cluster_key.write_bytes(os.urandom(32))
        servers = {
            _PLAIN: RedisServer(stage, host),
            _OWN_TLS: RedisServer(stage, host, tls=_certificate(stage, host)),
        }
        for variant in (
            _dictated(stage, _ENCRYPT, "encrypt()"),
            _dictated(stage, _BOTH, "compress(level=3) |> encrypt()"),
        ):
            servers[variant] = RedisServer(stage, host, variant.shim)
        for variant, server in servers.items():
            add_cells(stage, report, variant, server, configurations, seconds, least)
        report.cells.sort(key=lambda cell: CONFIGURATIONS.index(cell.params))
        interleave.run(report, rounds, options)
    for configuration in configurations:
        for name in (_ENCRYPT, _BOTH):
            for under in (_OWN_TLS.name, _PLAIN.name):
                for test in TESTS:
                    what = f"c{configuration['clients']} P{configuration['pipeline']}"
                    wanted = (name, under) == (_ENCRYPT, _OWN_TLS.name)
                    report.ratio(
                        f"redis {test.upper()} {what}: {name}/{under}",
                        f"{test}_rps",
                        (name, configuration),
                        (under, configuration),
                        Target(1.0, at_least=True) if wanted else None,
                    )
    return report
