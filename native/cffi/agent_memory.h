/* What the agent does to shared memory, in C because the layouts and the orderings are C's.
 *
 * The agent is written in Python; this is the one place where it touches memory that other processes map.
 * Called through the cffi extension bertha_socket._native. */
#ifndef BERTHA_AGENT_MEMORY_H
#define BERTHA_AGENT_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "layout.h"
#include "protocol.h"

/* ---- directory: `dir` is a writable mapping of at least agent_dir_size() bytes ---- */
size_t agent_dir_size(void);
/* Empties it for a new agent: nobody is listed, and then `generation` (never 0) says that it is served. */
void agent_dir_format(void *dir, uint64_t generation, uint32_t agent_pid);
uint64_t agent_dir_generation(const void *dir);
/* An orderly end: the generation becomes 0, so that nobody asks an agent that is not there. */
void agent_dir_leave(void *dir);
/* Shims ask again about what has no plan. */
void agent_dir_news(void *dir);
/* The number of the entry, or -1 when there is no free one. */
int agent_dir_insert(void *dir, const uint8_t *addr, uint16_t port, uint16_t flags, uint64_t netns,
                     uint64_t listener, uint32_t uid, uint32_t pid);
/* 0, or -1 when entry `index` is not that listener's. */
int agent_dir_remove(void *dir, int index, uint64_t listener);
/* Says that processes called by these words (each ends with NUL) are brief there, until then (CLOCK_MONOTONIC). */
void agent_dir_brief(void *dir, int index, uint64_t listener, uint32_t uid, const char *args, size_t size,
                     int64_t until_ns);
/* How many entries have a listener. */
uint32_t agent_dir_count(const void *dir);

/* ---- claims and link: only their headers need writing, new memory is zero ---- */
size_t agent_claims_size(void);
void agent_claims_header(struct bertha_claims_header *out, uint64_t listener);
size_t agent_link_size(void); /* with rings */
/* Its total_size says how long the link is.  Without `rings`, for what does not use them, they have a page each. */
void agent_link_header(struct bertha_link_header *out, uint64_t listener, uint32_t index, uint32_t client_pid,
                       int rings);
struct agent_use {
  uint32_t connections;
  uint64_t bytes; /* by the rings, both ways; only of those that used a slot last */
};
/* Of the first slots, as read from a link's descriptor. */
void agent_slots_read(const void *slots, size_t length, struct agent_use *out);

/* ---- table: copies of a header and of records, as read from a descriptor ---- */
struct agent_table {
  uint32_t conn_count;
  uint32_t conn_size;
  uint32_t used;
  uint64_t conn_offset;
};
/* 0, or -1 when this is no table of our version, or its numbers make no sense for `size` bytes. */
int agent_table_read(const void *header, size_t length, uint64_t size, struct agent_table *out);

struct agent_conn {
  uint32_t index; /* of the record, among those given */
  uint32_t kind;
  uint32_t pid;
  uint32_t role;
  uint32_t reason;
  uint32_t setup_us;
  uint32_t family;
  uint32_t carried_by; /* 1 + BERTHA_CARRIER_*; 0: none */
  uint32_t beside;     /* BERTHA_CARRIER_*; 0: none */
  uint32_t boxed;      /* datagrams have gone by memory */
  uint64_t opened_ns;
  uint8_t local_addr[16];
  uint8_t peer_addr[16];
  uint16_t local_port;
  uint16_t peer_port;
  uint64_t tx_bytes;
  uint64_t rx_bytes;
};
/* How many of the `count` records, `stride` bytes apart, are connections; those are written to `out`. */
uint32_t agent_conns_read(const void *records, size_t length, uint32_t stride, uint32_t count,
                          struct agent_conn *out);

/* ---- processes and namespaces ---- */
/* The calling process is killed when its parent ends. */
void agent_die_with_parent(void);
/* SO_NETNS_COOKIE of any socket, 0 when the kernel does not say. */
uint64_t agent_netns_cookie(int socket);
/* A descriptor for the network namespace of any socket, or minus an errno: only the mighty may have it. */
int agent_netns_of(int socket);
/* Moves the calling thread there.  0, or an errno. */
int agent_enter_netns(int netns);
/* Moves this process to the network namespace of process 1 or, where that is closed to it, to an empty one
 * of its own, so that it does not keep its starter's alive.  0, or an errno. */
int agent_leave_netns(void);

#endif
