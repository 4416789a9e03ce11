"""`python -m bertha_socket.agent`."""

from __future__ import annotations

import sys

from bertha_socket.agent.main import main

sys.exit(main())
