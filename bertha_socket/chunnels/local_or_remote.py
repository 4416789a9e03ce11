"""`local_or_remote()`: shared memory where both ends are on one host, else the kernel's TCP.

Arguments: none.
Endpoints: none: the shim and the kernel do it, no chunnel's implementation.  Wire: "none": nothing is added
to what the chunnel above puts there.
At the right end of a DAG, as the carrier of bytes, and of datagrams, for which UDP stands in TCP's place; it
is what is meant where none is named.
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
