"""Builds `bertha_socket._native` (cffi, API mode): the agent's access to the shared memory layouts, and the
chunnels in C that run in Python's carriers.

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


_CDEF = """
size_t agent_dir_size(void);
void agent_dir_format(void *dir, uint64_t generation, uint32_t agent_pid);
uint64_t agent_dir_generation(const void *dir);
void agent_dir_leave(void *dir);
int agent_dir_insert(void *dir, const uint8_t *addr, uint16_t port, uint16_t flags, uint64_t netns,
                     uint64_t listener, uint32_t uid, uint32_t pid);
int agent_dir_remove(void *dir, int index, uint64_t listener);
uint32_t agent_dir_count(const void *dir);

size_t agent_claims_size(void);
size_t agent_link_size(void);
struct bertha_claims_header { ...; };
struct bertha_link_header { uint64_t total_size; ...; };
void agent_claims_header(struct bertha_claims_header *out, uint64_t listener);
void agent_link_header(struct bertha_link_header *out, uint64_t listener, uint32_t index,
                       uint32_t client_pid, int rings);

struct agent_table { uint32_t conn_count; uint32_t conn_size; uint32_t used; uint64_t conn_offset; };
int agent_table_read(const void *header, size_t length, uint64_t size, struct agent_table *out);
struct agent_conn {
  uint32_t index; uint32_t kind; uint32_t pid; uint32_t role; uint32_t reason; uint32_t setup_us;
  uint32_t family;
  uint64_t opened_ns; uint8_t local_addr[16]; uint8_t peer_addr[16]; uint16_t local_port;
  uint16_t peer_port; uint64_t tx_bytes; uint64_t rx_bytes;
};
uint32_t agent_conns_read(const void *records, size_t length, uint32_t stride, uint32_t count,
                          struct agent_conn *out);

void agent_die_with_parent(void);
uint64_t agent_netns_cookie(int socket);
int agent_leave_netns(void);
uint32_t bertha_dir_hash(const uint8_t *addr, uint16_t port);

// native/cffi/reliable_pipe.h
struct reliable_pipe { double deadline; const uint8_t *bytes; const uint32_t *sizes; size_t size; ...; };
struct reliable_pipe *reliable_pipe_open(int server, uint32_t mtu, double give_up, uint32_t connection,
                                         uint64_t first);
void reliable_pipe_close(struct reliable_pipe *p);
int64_t reliable_pipe_start(struct reliable_pipe *p, double now);
int64_t reliable_pipe_down(struct reliable_pipe *p, const uint8_t *message, size_t size, double now);
int64_t reliable_pipe_down_end(struct reliable_pipe *p, double now);
int64_t reliable_pipe_up(struct reliable_pipe *p, const uint8_t *datagram, size_t size, double now);
int64_t reliable_pipe_tick(struct reliable_pipe *p, double now);
void reliable_pipe_taken(struct reliable_pipe *p);
const char *reliable_pipe_why(const struct reliable_pipe *p);

// What `bertha bench new` compares with: the calls themselves.
ssize_t send(int fd, const void *data, size_t size, int flags);
ssize_t recv(int fd, void *data, size_t size, int flags);
"""

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
    '#include <sys/socket.h>\n#include "agent_memory.h"\n#include "reliable_pipe.h"\n' + _sizes + _offsets,
    # Relative to the project's root, where setuptools runs.
    sources=["native/cffi/agent_memory.c", "native/cffi/reliable_pipe.c", *_RELIABLE],
    include_dirs=["native/core", "native/cffi"],
    depends=[
        "native/cffi/agent_memory.h",
        "native/cffi/reliable_pipe.h",
        "native/chunnels/reliable.h",
        "native/chunnels/reliable_inner.h",
        "native/carrier/buffer.h",
        *_HEADERS,
    ],
    extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter"],
)

if __name__ == "__main__":
    os.chdir(_ROOT)
    ffibuilder.compile(verbose=False)
