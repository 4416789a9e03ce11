"""Builds `bertha_socket._native` (cffi, API mode): the agent's access to the shared memory layouts, and the
chunnels in C that run in Python's carriers; and `bertha_socket._rings`: the shim's core, by which a carrier
in Python is reached over rings.  That one is loaded by carriers alone.

The constants are read out of the two headers that are the contract between shim and agent, so that no
number is written twice; the compiler supplies their values.  `python native/cffi_build.py` builds the
module in place; setuptools calls `ffibuilder` through `cffi_modules`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cffi import FFI

_ROOT = Path(__file__).resolve().parent.parent
_HEADERS = ("native/core/layout.h", "native/core/protocol.h")
_RELIABLE = tuple(f"native/chunnels/{name}.c" for name in ("reliable", "reliable_send", "reliable_receive"))

#: Members that the agent writes or tests read by themselves: (struct, member).
_OFFSETS = (
    ("link", "dead"),
    ("claims", "dag"),
    ("claims", "dag_carrier"),
    ("claims", "dag_spin_us"),
)

#: Structs whose sizes the agent (messages) and its tests (layouts) need.
_SIZED = (
    "bertha_msg",
    "bertha_hello",
    "bertha_hello_reply",
    "bertha_listen",
    "bertha_listen_reply",
    "bertha_unlisten",
    "bertha_plan",
    "bertha_connect",
    "bertha_link_reply",
    "bertha_link",
    "bertha_bell",
    "bertha_resolve",
    "bertha_resolve_reply",
    "bertha_negotiate",
    "bertha_negotiate_reply",
    "bertha_carrier_request",
    "bertha_dir_header",
    "bertha_dir_entry",
    "bertha_claims_header",
    "bertha_link_header",
    "bertha_slot",
    "bertha_table_header",
    "bertha_conn_info",
)


def _constants() -> list[str]:
    """Every `#define BERTHA_X number` and enumerator `BERTHA_X` of the two headers."""
    names: list[str] = []
    for header in _HEADERS:
        text = re.sub(r"/\*.*?\*/", "", (_ROOT / header).read_text(encoding="utf-8"), flags=re.S)
        names += re.findall(r"^#define (BERTHA_\w+) +[(0-9]", text, flags=re.M)
        for body in re.findall(r"enum \w+ \{(.*?)\}", text, flags=re.S):
            names += re.findall(r"\b(BERTHA_\w+)\b", body)
    return list(dict.fromkeys(names))


def _declared(header: str, *functions: str, structs: tuple[str, ...] = ()) -> str:
    """Structs of a header and its functions, or some of those, as they are there."""
    text = re.sub(r"/\*.*?\*/", "", (_ROOT / header).read_text(encoding="utf-8"), flags=re.S)
    found = {m[2]: m[1] for m in re.finditer(r"^(\w[^;{}()#]*?\b(\w+)\([^;{}]*\);)", text, flags=re.M)}
    whole = {m[2]: m[1] for m in re.finditer(r"^(struct (\w+) \{[^{}]*\};)", text, flags=re.M)}
    return "\n".join([*(whole[name] for name in structs), *(found[name] for name in functions or found), ""])


_AGENT_MEMORY = "native/cffi/agent_memory.h"
_ORPHAN = "native/cffi/orphan.h"
_RELIABLE_PIPE = "native/cffi/reliable_pipe.h"
_CDEF = (
    """
struct bertha_claims_header { ...; };
struct bertha_link_header { uint64_t slot_offset; uint64_t total_size; uint32_t left_out_offset; ...; };
struct reliable_held { size_t early; size_t begun; size_t early_max; };
uint32_t bertha_dir_hash(const uint8_t *addr, uint16_t port);
// What `bertha bench new` compares with: the calls themselves.
ssize_t send(int fd, const void *data, size_t size, int flags);
ssize_t recv(int fd, void *data, size_t size, int flags);
"""
    + _declared(_AGENT_MEMORY, structs=("agent_use", "agent_table", "agent_conn"))
    + _declared(_ORPHAN, structs=("orphan",))
    + _declared(_RELIABLE_PIPE, structs=("reliable_pipe",))
)

_names = _constants()
_sizes = "".join(f"#define SIZEOF_{name} ((int)sizeof(struct {name}))\n" for name in _SIZED)
_offsets = "".join(
    f"#define OFFSETOF_{kind}_{member} ((int)offsetof(struct bertha_{kind}_header, {member}))\n"
    for kind, member in _OFFSETS
)

ffibuilder = FFI()
ffibuilder.cdef(
    "".join(f"#define {name} ...\n" for name in _names)
    + "".join(f"#define SIZEOF_{name} ...\n" for name in _SIZED)
    + "".join(f"#define OFFSETOF_{kind}_{member} ...\n" for kind, member in _OFFSETS)
    + _CDEF
)
ffibuilder.set_source(
    "bertha_socket._native",
    '#include <sys/socket.h>\n#include "agent_memory.h"\n#include "orphan.h"\n#include "reliable_pipe.h"\n'
    + _sizes
    + _offsets,
    # Relative to the project's root, where setuptools runs.
    sources=[
        "native/cffi/agent_memory.c",
        "native/cffi/orphan.c",
        "native/cffi/reliable_pipe.c",
        *_RELIABLE,
    ],
    include_dirs=["native/core", "native/cffi"],
    depends=[
        _AGENT_MEMORY,
        _ORPHAN,
        _RELIABLE_PIPE,
        "native/carrier/carrier.h",
        "native/chunnels/reliable.h",
        "native/chunnels/reliable_inner.h",
        "native/carrier/buffer.h",
        *_HEADERS,
    ],
    extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter"],
)

#: What a carrier in Python needs of it.
_HOP_CALLS = (
    "hop_init",
    "hop_adopt",
    "hop_open",
    "hop_close",
    "hop_recv",
    "hop_send",
    "hop_end",
    "hop_event",
    "hop_wait",
    "hop_packed_size",
    "hop_pack",
    "hop_alone",
    "hop_unpack",
    "hop_use",
    "hop_abandon",
)
_RINGS_CDEF = """
struct link;
struct conn;
#define HOP_LEFT ...
void link_drop(struct link *l);
"""

#: Linked with native/Makefile's archive of native/core, which setup.py makes and names.
rings_ffibuilder = FFI()
rings_ffibuilder.cdef(_RINGS_CDEF + _declared("native/core/hop.h", *_HOP_CALLS))
rings_ffibuilder.set_source(
    "bertha_socket._rings",
    '#include "hop.h"\n#include "agentc.h"\n',
    include_dirs=["native/core"],
    depends=["native/core/hop.h"],
    define_macros=[("_GNU_SOURCE", None)],
    extra_compile_args=[
        "-std=gnu11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-fvisibility=hidden",
    ],
    libraries=["dl", "pthread"],
)

if __name__ == "__main__":
    os.chdir(_ROOT)
    ffibuilder.compile(verbose=False)
