"""How much one process, or one user, may have of the agent.  Each exists so that a client that errs, or
means harm, runs into its own limit before anybody else notices."""

from __future__ import annotations

from typing import Final

LISTENERS_PER_PROCESS: Final = 512
LINKS_PER_PROCESS: Final = 1024
#: Ways to carriers that one process asks for: one for each kind, and again when a carrier has ended.
CARRIERS_PER_PROCESS: Final = 64
BELLS_PER_PROCESS: Final = 4096
ADDRESSES_PER_LISTENER: Final = 128
#: Directory entries of one user who is not root: half of what there is.
ENTRIES_PER_USER: Final = 4096
CONNECTIONS: Final = 4096
CONNECTIONS_PER_USER: Final = 2048
#: Descriptors that the agent holds for one user who is not root, as a share of its own limit: one user in
#: need must not become everybody's.
DESCRIPTOR_SHARE: Final = 0.5
#: Seconds in which a connection must say HELLO (or ask for STATUS).
GREETING_SECONDS: Final = 10.0
#: Descriptors with one message: LISTEN has three.
DESCRIPTORS_PER_MESSAGE: Final = 4
