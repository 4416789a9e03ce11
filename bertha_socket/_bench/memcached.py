"""memcached under load: see ``servers``."""

from __future__ import annotations

from bertha_socket._bench.servers import run_memcached as run

__all__ = ["PROGRAMS", "run"]

PROGRAMS = ("memcached",)
