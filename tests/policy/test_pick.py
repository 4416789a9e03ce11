"""Which implementation is picked: a table of cases, and what must hold for any wishes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertha_socket.negotiation.pick import (
    IMPLEMENTATIONS,
    Cause,
    Plan,
    Refusal,
    Wishes,
    allowed,
    pick,
)

ANY = Wishes()


def w(
    *, require: str = "", prefer: str = "", avoid: str = "", prohibit: str = "", spin_us: int | None = None
) -> Wishes:
    return Wishes(
        tuple(require.split()), tuple(prefer.split()), tuple(avoid.split()), tuple(prohibit.split()), spin_us
    )


@pytest.mark.parametrize(
    ("client", "server", "picked", "cause"),
    [
        (ANY, ANY, "shm", Cause.NONE),
        (w(prohibit="shm"), ANY, "unix", Cause.SHM_PROHIBITED),
        (ANY, w(prohibit="shm"), "unix", Cause.SHM_PROHIBITED),
        (w(prohibit="unix"), ANY, "shm", Cause.NONE),
        (w(prohibit="shm unix"), ANY, None, Cause.SHM_PROHIBITED),
        (w(prohibit="shm"), w(prohibit="unix"), None, Cause.SHM_PROHIBITED),
        (w(prohibit="tcp"), ANY, "shm", Cause.NONE),
        (w(require="unix"), ANY, "unix", Cause.POLICY),
        (w(require="tcp"), ANY, None, Cause.POLICY),
        (w(require="shm"), w(require="unix"), None, Cause.POLICY),
        (w(require="shm unix"), w(require="unix tcp"), "unix", Cause.POLICY),
        (w(prefer="unix"), ANY, "unix", Cause.POLICY),
        (w(prefer="tcp"), ANY, None, Cause.POLICY),
        (ANY, w(prefer="unix"), "unix", Cause.POLICY),
        (w(prefer="shm"), w(prefer="unix"), "shm", Cause.POLICY),
        (w(prefer="unix"), w(prefer="shm"), "unix", Cause.POLICY),
        (w(prefer="unix shm"), ANY, "unix", Cause.POLICY),
        (w(avoid="shm"), ANY, "unix", Cause.POLICY),
        (w(avoid="shm unix"), ANY, None, Cause.POLICY),
        (w(avoid="shm unix tcp"), ANY, "shm", Cause.NONE),
        (w(avoid="shm"), w(prefer="shm"), "unix", Cause.POLICY),
        (w(avoid="shm"), w(prohibit="unix tcp"), "shm", Cause.NONE),
    ],
)
def test_cases(client: Wishes, server: Wishes, picked: str | None, cause: Cause) -> None:
    found = pick(client, server, same_user=True)
    assert found.cause is cause
    assert (found.implementation if isinstance(found, Plan) else None) == picked


@pytest.mark.parametrize(
    ("one", "other", "least"), [(None, None, None), (5, None, 5), (None, 0, 0), (5, 20, 5), (20, 0, 0)]
)
def test_the_tighter_bound_on_spinning_holds(one: int | None, other: int | None, least: int | None) -> None:
    found = pick(w(spin_us=one), w(spin_us=other), same_user=True)
    assert isinstance(found, Plan) and found.spin_us == least


@pytest.mark.parametrize(
    ("client", "server", "allowed_"),
    [
        ((), (), False),
        (("bob",), (), False),
        ((), ("alice",), False),
        (("bob",), ("alice",), True),
        (("2",), ("1",), True),
        (("*",), ("alice",), True),
        (("alice",), ("bob",), False),
    ],
)
def test_users(client: tuple[str, ...], server: tuple[str, ...], allowed_: bool) -> None:
    found = pick(
        Wishes(allow_users=client),
        Wishes(allow_users=server),
        same_user=False,
        client_user=("alice", "1"),
        server_user=("bob", "2"),
    )
    assert found == (Plan("shm", None, None, Cause.NONE) if allowed_ else Refusal(Cause.OTHER_USER))


@pytest.mark.parametrize(
    ("client", "server", "shared"),
    [((), (), True), (("bob",), (), True), ((), ("carol",), False), (("carol",), ("alice",), False)],
)
def test_through_a_system_agent_users_share_unless_a_policy_says_otherwise(
    client: tuple[str, ...], server: tuple[str, ...], shared: bool
) -> None:
    found = pick(
        Wishes(allow_users=client),
        Wishes(allow_users=server),
        same_user=False,
        client_user=("alice", "1"),
        server_user=("bob", "2"),
        system_agent=True,
    )
    assert isinstance(found, Plan) is shared
    assert found.cause is (Cause.NONE if shared else Cause.OTHER_USER)


def test_what_is_not_available_is_not_picked() -> None:
    found = pick(ANY, ANY, same_user=True, available=("unix", "tcp"))
    assert isinstance(found, Plan) and found.implementation == "unix"
    assert pick(ANY, ANY, same_user=True, available=()) == Refusal(Cause.POLICY)


_names = st.lists(st.sampled_from(IMPLEMENTATIONS), unique=True, max_size=3).map(tuple)
_wishes = st.builds(
    Wishes,
    require=_names,
    prefer=_names,
    avoid=_names,
    prohibit=_names,
    spin_us=st.none() | st.integers(0, 9),
    ring_size=st.sampled_from([None, 262144, 1048576]),
    allow_users=st.lists(st.sampled_from(["alice", "bob", "*"]), max_size=2).map(tuple),
)


@given(_wishes, _wishes, st.booleans(), st.sets(st.sampled_from(IMPLEMENTATIONS)))
def test_nobody_gets_what_it_does_not_want(
    client: Wishes, server: Wishes, same_user: bool, available: set[str]
) -> None:
    found = pick(
        client,
        server,
        same_user=same_user,
        client_user=("alice",),
        server_user=("bob",),
        available=available,
    )
    if isinstance(found, Refusal):
        assert found.cause is not Cause.NONE
        return
    assert found.implementation in available
    for end in (client, server):
        assert found.implementation in allowed(end)
        assert found.implementation not in end.prohibit
        assert not end.require or found.implementation in end.require
        for bound, mine in ((found.spin_us, end.spin_us), (found.ring_size, end.ring_size)):
            assert mine is None or (bound is not None and bound <= mine)
    if not same_user:
        assert {"bob", "*"} & set(client.allow_users) and {"alice", "*"} & set(server.allow_users)
    asked = any("shm" in (*end.require, *end.prefer) for end in (client, server))
    assert (found.cause is Cause.NONE) == (found.implementation == "shm" and not asked)


@given(_wishes, _wishes)
def test_the_reason_is_a_matter_of_both_and_the_result_of_the_wishes_alone(
    client: Wishes, server: Wishes
) -> None:
    """A second look gives the same plan, and a wish that repeats what was picked changes nothing."""
    found = pick(client, server, same_user=True)
    assert pick(client, server, same_user=True) == found
    if isinstance(found, Plan):
        firmer = client._replace(require=(found.implementation,))
        again = pick(firmer, server, same_user=True)
        assert isinstance(again, Plan) and again.implementation == found.implementation
