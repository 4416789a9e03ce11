"""`udp`: the kernel's UDP carries the datagrams.

At the right end of a DAG, as the carrier of bytes (left out: `local_or_remote`).  It has no arguments, and no
implementation among the chunnels': the shim and the kernel do it.
"""

from __future__ import annotations

from bertha_socket.chunnels._types import ChunnelType, Interface

TYPE = ChunnelType(
    name="udp",
    summary="the kernel's UDP carries the datagrams",
    upper=Interface.DATAGRAMS,
    lower=Interface.DATAGRAMS,
    endpoints="none",
    layer=100,
)
