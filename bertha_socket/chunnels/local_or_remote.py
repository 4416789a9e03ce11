"""`local_or_remote`: shared memory where both ends are on one host, else the kernel's TCP carries the bytes.

At the right end of a DAG, as the carrier of bytes (left out: `local_or_remote`).  It has no arguments, and no
implementation among the chunnels': the shim and the kernel do it.
"""

from __future__ import annotations

from bertha_socket.chunnels._types import ChunnelType, Interface

TYPE = ChunnelType(
    name="local_or_remote",
    summary="the best carrier of bytes that both ends have: shared memory on one host, else the kernel's TCP",
    upper=Interface.STREAM,
    lower=Interface.STREAM,
    endpoints="none",
    layer=100,
)
