"""redis-benchmark against redis-server: SET and GET over TCP, a native unix socket and shm.

50 clients without pipelining, as redis-benchmark does by default; a full run also has 1 and 500 clients, and
50 clients that pipeline 16 requests.  How long each run takes is calibrated per variant, since they differ
by more than an order of magnitude.
"""

from __future__ import annotations

from bertha_socket._bench import interleave, variants
from bertha_socket._bench.redispair import TESTS, RedisServer, add_cells
from bertha_socket._bench.report import Report, Target
from bertha_socket._bench.stage import Stage

NAMES = (variants.TCP, variants.UNIX_SOCKET, variants.SHM, variants.SHM_NOSPIN, variants.UNIX)
PROGRAMS = ("redis-server", "redis-benchmark")
MAIN = {"clients": 50, "pipeline": 1}
CONFIGURATIONS = (
    MAIN,
    {"clients": 1, "pipeline": 1},
    {"clients": 500, "pipeline": 1},
    {"clients": 50, "pipeline": 16},
)
_WANTED = {
    (variants.SHM, variants.TCP): Target(4.0, at_least=True),
    (variants.SHM, variants.UNIX_SOCKET): Target(3.0, at_least=True),
    (variants.SHM_NOSPIN, variants.TCP): Target(2.5, at_least=True),
}


def run(options: interleave.Options) -> Report:
    rounds = options.rounds_or(3, 7)
    seconds = (0.4 if options.quick else 1.0) * options.scale
    least = options.amount(5000, 20000, least=200)
    configurations = CONFIGURATIONS[:1] if options.quick else CONFIGURATIONS
    report = Report(
        "redis",
        f"redis-benchmark SET and GET over {', '.join(NAMES)}",
        options={"rounds": rounds, "seconds_per_test": seconds},
    )
    with Stage() as stage:
        host = stage.one_host()
        plain = RedisServer(stage, host)
        for variant in variants.standard(stage, NAMES, report):
            server = plain if variant.shim is None else RedisServer(stage, host, variant.shim)
            add_cells(stage, report, variant, server, configurations, seconds, least)
        report.cells.sort(key=lambda cell: CONFIGURATIONS.index(cell.params))
        interleave.run(report, rounds, options)
    for configuration in configurations:
        for name in NAMES[2:]:
            for under in (variants.TCP, variants.UNIX_SOCKET):
                for test in TESTS:
                    what = f"c{configuration['clients']} P{configuration['pipeline']}"
                    report.ratio(
                        f"redis {test.upper()} {what}: {name}/{under}",
                        f"{test}_rps",
                        (name, configuration),
                        (under, configuration),
                        _WANTED.get((name, under)) if configuration is MAIN else None,
                    )
    return report
