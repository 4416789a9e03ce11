"""redis-server with its own clients: an epoll server with many connections, forks, and rude ends."""

from __future__ import annotations

import hashlib
import re
import signal
import socket

import pytest

from tests.harness import (
    Host,
    assert_balanced,
    assert_carried,
    assert_plain,
    connections,
    eventually,
    require_program,
)
from tests.programs.conftest import StartRedis

pytestmark = pytest.mark.program


def _cli(port: int, *words: str) -> list[str]:
    return [require_program("redis-cli"), "-p", str(port), *words]


def test_set_and_get(host: Host, start_redis: StartRedis) -> None:
    _, port = start_redis(host)
    assert host.run(_cli(port, "SET", "key", "value")).strip() == "OK"
    assert host.run(_cli(port, "GET", "key")).strip() == "value"
    assert host.run(_cli(port, "GET", "nothing")).strip() == ""
    log = host.finish()
    assert_carried(log, "redis-cli", min_connections=3, role="client", port=port)
    assert_carried(log, "redis-server", min_connections=3, role="server", port=port)
    assert_balanced(log, port=port, min_pairs=3)


def test_many_commands_on_one_connection(host: Host, start_redis: StartRedis) -> None:
    """redis-cli reading commands from its standard input: a request and an answer each, 2000 times."""
    _, port = start_redis(host)
    commands = "".join(f"INCRBY counter {n}\n" for n in range(2000))
    answers = host.run(_cli(port), feed=commands.encode()).split()
    assert answers == [str(n * (n + 1) // 2) for n in range(2000)]
    log = host.finish()
    assert_carried(log, "redis-cli", role="client", port=port)
    assert_balanced(log, port=port)


@pytest.mark.parametrize("size", [1, 100_000, 3_000_000, 20_000_000])
def test_large_values(host: Host, start_redis: StartRedis, size: int) -> None:
    """A value larger than any ring comes back as it went."""
    _, port = start_redis(host)
    value = (hashlib.sha256(b"value").hexdigest() * (size // 64 + 1))[:size]
    assert host.run(_cli(port, "-x", "SET", "large"), feed=value.encode()).strip() == "OK"
    assert host.run(_cli(port, "STRLEN", "large")).strip() == str(size)
    back = host.run(_cli(port, "--raw", "GET", "large")).rstrip("\n")
    assert hashlib.sha256(back.encode()).digest() == hashlib.sha256(value.encode()).digest()
    log = host.finish()
    assert_carried(log, "redis-cli", min_connections=3, role="client", port=port)
    assert_balanced(log, port=port, min_pairs=3)
    assert not log or sum(c.tx_bytes for c in connections(log, role="client")) > size


def test_pipe(host: Host, start_redis: StartRedis) -> None:
    """redis-cli --pipe: thousands of requests are on their way before the first answer is read."""
    _, port = start_redis(host)
    feed = b"".join(b"SET key:%d %s\r\n" % (n, b"x" * (n % 500 + 1)) for n in range(20_000))
    report = host.run(_cli(port, "--pipe"), feed=feed)
    assert "errors: 0, replies: 20000" in report
    assert host.run(_cli(port, "DBSIZE")).strip() == "20000"
    log = host.finish()
    assert_carried(log, "redis-cli", min_connections=2, role="client", port=port)
    assert_balanced(log, port=port, min_pairs=2)


def test_publish_and_subscribe(host: Host, start_redis: StartRedis) -> None:
    _, port = start_redis(host)
    subscribers = [host.spawn(_cli(port, "SUBSCRIBE", "news")) for _ in range(3)]
    for subscriber in subscribers:
        subscriber.wait_text("subscribe")
    published = host.run(_cli(port), feed=b"".join(b"PUBLISH news item-%d\n" % n for n in range(300)))
    assert published.split() == ["3"] * 300
    for subscriber in subscribers:
        text = subscriber.wait_text("item-299")
        assert re.findall(r"item-(\d+)", text) == [str(n) for n in range(300)]
    log = host.finish()
    # The subscribers were ended by a signal and could not log; the server's lines tell of them.
    assert_carried(log, "redis-cli", role="client", port=port)
    assert_carried(log, "redis-server", min_connections=4, role="server", port=port)


def test_monitor_and_blocking_pop(host: Host, start_redis: StartRedis) -> None:
    """Clients that sleep until the server has something for them, long after they asked."""
    _, port = start_redis(host)
    monitor = host.spawn(_cli(port, "MONITOR"))
    monitor.wait_text("OK")
    waiter = host.spawn(_cli(port, "BLPOP", "queue", "0"))
    monitor.wait_text('"BLPOP"')
    assert waiter.running
    assert host.run(_cli(port, "RPUSH", "queue", "job")).strip() == "1"
    assert waiter.wait().split() == ["queue", "job"]
    monitor.wait_text('"RPUSH"')
    assert host.run(_cli(port, "BLPOP", "queue", "0.2")).strip() == ""
    log = host.finish()
    assert_carried(log, "redis-cli", min_connections=3, role="client", port=port)
    assert_carried(log, "redis-server", min_connections=4, role="server", port=port)


def test_background_save_while_clients_go_on(host: Host, start_redis: StartRedis) -> None:
    """BGSAVE forks the server: the child has every connection's descriptors and must not disturb them."""
    _, port = start_redis(host)
    host.run(_cli(port, "DEBUG", "POPULATE", "100000"))
    words = []
    for n in range(3000):
        words.append(f"INCR counter-{n % 7}")
        if n % 1000 == 500:
            words.append("BGSAVE SCHEDULE")
    answers = host.run(_cli(port), feed="\n".join(words).encode() + b"\n").splitlines()
    assert len([a for a in answers if a.strip().isdigit()]) == 3000
    assert any("Background saving" in a for a in answers)
    eventually(
        lambda: "rdb_bgsave_in_progress:0" in host.run(_cli(port, "INFO", "persistence")), "end of BGSAVE", 15
    )
    assert "rdb_last_bgsave_status:ok" in host.run(_cli(port, "INFO", "persistence"))
    assert host.run(_cli(port, "GET", "counter-0")).strip() == "429"
    log = host.finish()
    assert_carried(log, "redis-cli", min_connections=3, role="client", port=port)
    assert_carried(log, "redis-server", min_connections=3, role="server", port=port)
    assert_balanced(log, port=port, min_pairs=3)


def test_server_ends_a_client(host: Host, start_redis: StartRedis) -> None:
    """CLIENT KILL: the victim sees the end of its connection although it sleeps."""
    _, port = start_redis(host)
    victim = host.spawn(_cli(port, "BLPOP", "nothing", "0"))

    def client_id() -> str | None:
        listing = host.run(_cli(port, "CLIENT", "LIST"))
        found = [re.search(r"id=(\d+)", line) for line in listing.splitlines() if "cmd=blpop" in line]
        return found[0].group(1) if found and found[0] else None

    victim_id = eventually(client_id, "the victim's BLPOP")
    assert host.run(_cli(port, "CLIENT", "KILL", "ID", str(victim_id))).strip() == "1"
    text = victim.wait(check=False)
    assert "closed" in text.lower() or "reset" in text.lower(), text
    log = host.finish()
    assert_carried(log, "redis-cli", min_connections=3, role="client", port=port)


def test_server_killed(host: Host, start_redis: StartRedis) -> None:
    """kill -9 of the server: its sleeping clients get an error at once, as they do over TCP."""
    server, port = start_redis(host)
    sleepers = [host.spawn(_cli(port, "BLPOP", "nothing", "0")) for _ in range(3)]
    eventually(
        lambda: host.run(_cli(port, "CLIENT", "LIST")).count("cmd=blpop") == 3, "three sleeping clients"
    )
    server.kill()
    for sleeper in sleepers:
        text = sleeper.wait(check=False)
        assert "Error" in text or "Could not connect" in text, text
    log = host.finish()
    assert_carried(log, "redis-cli", min_connections=4, role="client", port=port)


def test_clients_killed(host: Host, start_redis: StartRedis) -> None:
    """kill -9 of clients, asleep and in the middle of sending: the server forgets them and serves others."""
    _, port = start_redis(host)
    sleepers = [host.spawn(_cli(port, "BLPOP", "nothing", "0")) for _ in range(3)]
    benchmark = require_program("redis-benchmark")
    busy = host.spawn([benchmark, "-p", str(port), "-c", "20", "-n", "100000000", "-t", "set", "-P", "8"])
    count = "connected_clients:(\\d+)"

    def clients() -> int:
        found = re.search(count, host.run(_cli(port, "INFO", "clients")))
        assert found
        return int(found.group(1))

    eventually(lambda: clients() >= 24, "all clients connected")
    for program in [*sleepers, busy]:
        program.kill()
    eventually(lambda: clients() == 1, "the server dropping the dead clients")
    assert host.run(_cli(port, "SET", "still", "alive")).strip() == "OK"
    log = host.finish()
    assert_carried(log, "redis-server", min_connections=24, role="server", port=port)


@pytest.mark.parametrize(("clients", "pipeline", "requests"), [(50, 1, 6000), (50, 16, 40000), (1, 1, 2000)])
def test_benchmark(host: Host, start_redis: StartRedis, clients: int, pipeline: int, requests: int) -> None:
    _, port = start_redis(host)
    words = ["-p", str(port), "-c", str(clients), "-n", str(requests), "-P", str(pipeline)]
    report = host.run([require_program("redis-benchmark"), *words, "-t", "set,get,lpush,lrange_100", "--csv"])
    rates = re.findall(r'^"(\w+).*?","([\d.]+)"', report, re.MULTILINE)
    assert len(rates) >= 4, report
    assert all(float(rate) > 0 for _, rate in rates), report
    log = host.finish()
    assert_carried(log, "redis-benchmark", min_connections=clients, role="client", port=port)
    assert_carried(log, "redis-server", min_connections=clients, role="server", port=port)


def test_threaded_benchmark(host: Host, start_redis: StartRedis) -> None:
    """redis-benchmark with two threads, each with its own epoll set."""
    _, port = start_redis(host)
    words = ["-p", str(port), "-c", "20", "-n", "10000", "--threads", "2", "-t", "set,get", "-q"]
    assert "SET" in host.run([require_program("redis-benchmark"), *words])
    log = host.finish()
    assert_carried(log, "redis-benchmark", min_connections=20, role="client", port=port)


def test_shutdown_while_connected(host: Host, start_redis: StartRedis) -> None:
    """SIGTERM of a server with sleeping clients: an orderly end on both sides."""
    server, port = start_redis(host)
    sleeper = host.spawn(_cli(port, "SUBSCRIBE", "news"))
    sleeper.wait_text("subscribe")
    host.stop(server, number=signal.SIGTERM)
    sleeper.wait_text("onnect", timeout=10)  # "Server closed the connection" or "Could not connect"
    log = host.finish()
    assert_carried(log, "redis-server", role="server", port=port)


def test_replica(host: Host, start_redis: StartRedis) -> None:
    """A server that is another one's client: the replica connects from within its epoll loop."""
    _, primary = start_redis(host)
    host.run(_cli(primary), feed=b"".join(b"SET key:%d %s\n" % (n, b"v" * 2000) for n in range(2000)))
    _, replica = start_redis(host)
    assert host.run(_cli(replica, "REPLICAOF", "127.0.0.1", str(primary))).strip() == "OK"
    eventually(lambda: host.run(_cli(replica, "DBSIZE")).strip() == "2000", "the replica's copy", 15)
    host.run(_cli(primary, "SET", "late", "news"))
    eventually(lambda: host.run(_cli(replica, "GET", "late")).strip() == "news", "the late write", 10)
    log = host.finish()
    assert_carried(log, "redis-server", min_connections=1, role="client", port=primary)
    assert_carried(log, "redis-server", min_connections=1, role="server", port=primary)


def test_garbage_from_a_client(host: Host, start_redis: StartRedis) -> None:
    """Bytes that are no protocol, from a plain client, get redis's own answer and an end."""
    _, port = start_redis(host)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as rude:
        rude.sendall(b"*1\r\n$-9\r\n")
        answer = b"".join(iter(lambda: rude.recv(4096), b""))
    assert answer.startswith(b"-ERR Protocol error")
    assert_plain(host.finish(), "redis-server", role="server", port=port)
