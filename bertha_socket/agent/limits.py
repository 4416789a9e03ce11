"""How much one process, or one user, may have of the agent.  Each exists so that a client that errs, or
means harm, runs into its own limit before anybody else notices.
Some are changed by a policy file's [agent] limits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

LISTENERS_PER_PROCESS = 512
LINKS_PER_PROCESS = 1024
#: Ways to carriers that one process asks for: one for each kind, and again when a carrier has ended.
CARRIERS_PER_PROCESS = 64
BELLS_PER_PROCESS: Final = 4096
ADDRESSES_PER_LISTENER: Final = 128
#: Directory entries of one user who is not root: half of what there is.
ENTRIES_PER_USER = 4096
CONNECTIONS = 4096
CONNECTIONS_PER_USER = 2048
#: Descriptors that the agent holds for one user who is not root, as a share of its own limit: one user in
#: need must not become everybody's.
DESCRIPTOR_SHARE: Final = 0.5
#: Seconds in which a connection must say HELLO (or ask for STATUS).
GREETING_SECONDS: Final = 10.0
#: Seconds without programs after which an agent leaves.
IDLE_SECONDS: Final = 60.0
#: Descriptors with one message: LISTEN has five at the most.
DESCRIPTORS_PER_MESSAGE: Final = 5


def apply(changed: Iterable[tuple[str, int]]) -> None:
    """Puts an operator's limits in force, before the agent serves (names: bertha_socket._settings.LIMITS)."""
    for name, value in changed:
        globals()[name.upper()] = value
