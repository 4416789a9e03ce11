"""What the end-to-end tests share: hosts with their own agent, real programs, connection logs, namespaces.

Why a package of its own: the tests say *what* must happen to ordinary programs; everything that is needed to
start, watch and end those programs without leaving anything behind is here, once.
"""

from __future__ import annotations

from .capture import Capture, assert_only_tls
from .connlog import (
    Connection,
    assert_balanced,
    assert_carried,
    assert_mostly_carried,
    assert_plain,
    connections,
    read_connlog,
)
from .hosts import Host, free_port
from .namespaces import Namespace, NamespaceTrio, namespaces_unavailable
from .poll import eventually
from .programs import Program, require_program
from .reassembly import assert_only_tls_by_datagrams

__all__ = [
    "Capture",
    "Connection",
    "Host",
    "Namespace",
    "NamespaceTrio",
    "Program",
    "assert_balanced",
    "assert_carried",
    "assert_mostly_carried",
    "assert_only_tls",
    "assert_only_tls_by_datagrams",
    "assert_plain",
    "connections",
    "eventually",
    "free_port",
    "namespaces_unavailable",
    "read_connlog",
    "require_program",
]
