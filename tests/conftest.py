"""Fixtures of all tests: hosts with their own agent, namespaces, and proof that nothing is left behind."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.harness import Host, Namespace, NamespaceTrio, namespaces_unavailable
from tests.harness.hosts import DIRECTORY_PREFIX, Adoption
from tests.harness.namespaces import leftover_namespaces
from tests.harness.workers import Room, enter_own_network

# How long an example takes says more about what else runs here than about the code.
hypothesis.settings.register_profile("bertha", deadline=None)
hypothesis.settings.load_profile("bertha")

_HOSTS = pytest.StashKey[list[Host]]()
_ROOM = pytest.StashKey[Room]()
MakeHost = Callable[..., Host]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rehearse",
        action="store_true",
        help="run the end-to-end tests of tests/programs without agent and shim and without looking at the"
        " connection log: what fails then is the test's fault, not the shim's",
    )


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is told to end cleans up as well
    worker: dict[str, str] | None = getattr(config, "workerinput", None)
    if worker is not None:
        enter_own_network()
        config.stash[_ROOM] = Room(worker["testrunuid"])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """In the process that the workers answer to."""
    node.config.stash[_ROOM] = Room(node.workerinput["testrunuid"])


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and _ROOM in config.stash:
        config.stash[_ROOM].remove()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    room = item.config.stash.get(_ROOM, None)
    if room is None:
        return (yield)
    with room.entered(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        hosts: list[Host] = item.stash.get(_HOSTS, list[Host]())
        for number, host in enumerate(hosts):
            if host.dir.exists():
                report.sections.append((f"host {number}", host.report()))
    return report


@pytest.fixture
def make_host(request: pytest.FixtureRequest) -> Iterator[MakeHost]:
    """`make_host(user=None, agent=True, netns=None, ...)`: a new Host; what it started ends with the test."""
    hosts = request.node.stash[_HOSTS] = []
    adoption = Adoption()
    adoption.start()

    def make(
        *,
        user: str | None = None,
        agent: bool = True,
        netns: Namespace | None = None,
        cluster_key: Path | None = None,
    ) -> Host:
        rehearse = request.config.getoption("rehearse")
        host = Host(user=user, agent=False, rehearse=rehearse, netns=netns, cluster_key=cluster_key)
        hosts.append(host)
        if agent and not host.rehearse:
            host.start_agent()
        return host

    yield make
    wrong = [line for host in hosts for line in host.close()]
    wrong += adoption.end()
    reports = [host.report() for host in hosts] if wrong else []
    for host in hosts:
        host.remove()
    if wrong:
        pytest.fail("\n".join([*wrong, *reports]), pytrace=False)


@pytest.fixture
def host(make_host: MakeHost) -> Host:
    """One host with its agent."""
    return make_host()


@pytest.fixture
def netns() -> Iterator[NamespaceTrio]:
    """Two joined namespaces and the trap; skips, saying why, where they cannot be made."""
    why = namespaces_unavailable()
    if why is not None:
        pytest.skip(why)
    trio = NamespaceTrio.lend()
    yield trio
    trio.give_back()


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """At the end of the session no namespace and no directory of ours is left (processes: `make_host`)."""
    yield
    NamespaceTrio.close_idle()
    assert not leftover_namespaces(), f"namespaces left behind: {leftover_namespaces()}"
    left = sorted(Path(tempfile.gettempdir()).glob(f"{DIRECTORY_PREFIX}*"))
    assert not left, f"directories left behind: {left}"
