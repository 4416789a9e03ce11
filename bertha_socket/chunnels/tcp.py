"""`tcp`: the kernel's TCP carries the bytes.

At the right end of a DAG, as the carrier of bytes (left out: `local_or_remote`).  It has no arguments, and no
implementation among the chunnels': the shim and the kernel do it.
"""

from __future__ import annotations

from bertha_socket.chunnels._types import ChunnelType, Interface

TYPE = ChunnelType(
    name="tcp",
    summary="the kernel's TCP carries the bytes",
    upper=Interface.STREAM,
    lower=Interface.STREAM,
    endpoints="none",
    layer=100,
)
