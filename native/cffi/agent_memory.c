/* The agent's writer of the directory, and its reader of connection tables. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "agent_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

enum { PAGE = 4096 };

static size_t round_up(size_t n, size_t to) {
  return (n + to - 1) / to * to;
}

/* ---- directory ---- */

static struct bertha_dir_entry *entries(void *dir) {
  return (struct bertha_dir_entry *)(void *)((struct bertha_dir_header *)dir + 1);
}

size_t agent_dir_size(void) {
  return sizeof(struct bertha_dir_header) + BERTHA_DIR_ENTRIES * sizeof(struct bertha_dir_entry);
}

/* The writer's half of the sequence lock.  `seq` is made odd before a field changes (the release fence
 * keeps the later stores behind it) and even after the last one has.  An agent that was killed in between
 * left it odd: `| 1` carries on from there. */
static uint32_t write_begin(struct bertha_dir_entry *e) {
  uint32_t seq = atomic_load_explicit(&e->seq, memory_order_relaxed) | 1u;
  atomic_store_explicit(&e->seq, seq, memory_order_relaxed);
  atomic_thread_fence(memory_order_release);
  return seq;
}

static void write_end(struct bertha_dir_entry *e, uint32_t seq) {
  atomic_store_explicit(&e->seq, seq + 1u, memory_order_release);
}

/* Every write of an entry is this one.  Volatile, because readers look at the fields while we write. */
static void entry_write(struct bertha_dir_entry *e, const struct bertha_dir_entry *value) {
  uint32_t seq = write_begin(e);
  volatile struct bertha_dir_entry *v = e;
  v->port = value->port;
  v->flags = value->flags;
  for (int i = 0; i < 16; i++) {
    v->addr[i] = value->addr[i];
  }
  v->netns = value->netns;
  v->listener = value->listener;
  v->uid = value->uid;
  v->pid = value->pid;
  v->brief = value->brief;
  write_end(e, seq);
}

void agent_dir_format(void *dir, uint64_t generation, uint32_t agent_pid) {
  struct bertha_dir_header *h = dir;
  static const struct bertha_dir_entry nothing;
  atomic_store_explicit(&h->generation, 0, memory_order_release);
  struct bertha_dir_entry *table = entries(dir);
  for (uint32_t i = 0; i < BERTHA_DIR_ENTRIES; i++) {
    struct bertha_dir_entry *e = &table[i];
    if (e->port != 0 || e->listener != 0 || (atomic_load_explicit(&e->seq, memory_order_relaxed) & 1u) != 0) {
      entry_write(e, &nothing);
    }
  }
  h->magic = BERTHA_MAGIC_DIR;
  h->version = BERTHA_LAYOUT_VERSION;
  h->agent_pid = agent_pid;
  h->entry_count = BERTHA_DIR_ENTRIES;
  atomic_store_explicit(&h->generation, generation, memory_order_release);
}

uint64_t agent_dir_generation(const void *dir) {
  const struct bertha_dir_header *h = dir;
  return atomic_load_explicit(&h->generation, memory_order_acquire);
}

void agent_dir_leave(void *dir) {
  struct bertha_dir_header *h = dir;
  atomic_store_explicit(&h->generation, 0, memory_order_release);
}

void agent_dir_news(void *dir) {
  struct bertha_dir_header *h = dir;
  atomic_fetch_add_explicit(&h->news, 1, memory_order_release);
}

int agent_dir_insert(void *dir, const uint8_t *addr, uint16_t port, uint16_t flags, uint64_t netns,
                     uint64_t listener, uint32_t uid, uint32_t pid) {
  if (port == 0 || listener == 0) {
    return -1;
  }
  struct bertha_dir_entry *table = entries(dir);
  uint32_t mask = BERTHA_DIR_ENTRIES - 1;
  uint32_t at = bertha_dir_hash(addr, port) & mask;
  for (uint32_t probe = 0; probe < BERTHA_DIR_ENTRIES; probe++, at = (at + 1) & mask) {
    if (table[at].listener == 0) { /* never used, or removed: a reader's probe goes on past either */
      struct bertha_dir_entry value = {
          .port = port, .flags = flags, .netns = netns, .listener = listener, .uid = uid, .pid = pid};
      memcpy(value.addr, addr, sizeof value.addr);
      entry_write(&table[at], &value);
      return (int)at;
    }
  }
  return -1;
}

int agent_dir_remove(void *dir, int index, uint64_t listener) {
  if (index < 0 || (uint32_t)index >= BERTHA_DIR_ENTRIES || listener == 0) {
    return -1;
  }
  struct bertha_dir_entry *table = entries(dir);
  uint32_t mask = BERTHA_DIR_ENTRIES - 1;
  uint32_t at = (uint32_t)index;
  if (table[at].listener != listener) {
    return -1;
  }
  struct bertha_dir_entry value = {.port = table[at].port};
  entry_write(&table[at], &value);
  /* Removed entries with nothing behind them end no probe but their own: they can be as if never used,
   * or in a long life every probe would come to walk the whole table. */
  if (table[(at + 1) & mask].port == 0) {
    static const struct bertha_dir_entry nothing;
    while (table[at].port != 0 && table[at].listener == 0) {
      entry_write(&table[at], &nothing);
      at = (at - 1) & mask;
    }
  }
  return 0;
}

uint32_t agent_dir_count(const void *dir) {
  const struct bertha_dir_entry *table =
      (const struct bertha_dir_entry *)(const void *)((const struct bertha_dir_header *)dir + 1);
  uint32_t count = 0;
  for (uint32_t i = 0; i < BERTHA_DIR_ENTRIES; i++) {
    count += table[i].listener != 0;
  }
  return count;
}

void agent_dir_brief(void *dir, int index, uint64_t listener, uint32_t uid, const char *args, size_t size,
                     int64_t until_ns) {
  if (index < 0 || (uint32_t)index >= BERTHA_DIR_ENTRIES || entries(dir)[index].listener != listener) {
    return;
  }
  uint64_t word = bertha_brief_word(bertha_brief_kind(uid, args, size), until_ns);
  atomic_store_explicit(&entries(dir)[index].brief, word, memory_order_relaxed);
}

/* ---- claims and link ---- */

size_t agent_claims_size(void) {
  return round_up(
      sizeof(struct bertha_claims_header) + BERTHA_CLAIM_BUCKETS * sizeof(struct bertha_claims_bucket), PAGE);
}

void agent_claims_header(struct bertha_claims_header *out, uint64_t listener) {
  memset(out, 0, sizeof *out);
  out->magic = BERTHA_MAGIC_CLAIM;
  out->version = BERTHA_LAYOUT_VERSION;
  out->listener = listener;
  out->bucket_count = BERTHA_CLAIM_BUCKETS;
  out->dag_spin_us = UINT32_MAX;
}

void agent_link_header(struct bertha_link_header *out, uint64_t listener, uint32_t index, uint32_t client_pid,
                       int rings) {
  memset((void *)out, 0, sizeof *out);
  out->magic = BERTHA_MAGIC_LINK;
  out->version = BERTHA_LAYOUT_VERSION;
  out->listener = listener;
  out->index = index;
  out->slot_count = BERTHA_LINK_SLOTS;
  out->ring_max = rings ? BERTHA_RING_MAX : PAGE;
  out->client_pid = client_pid;
  size_t at = round_up(sizeof *out, BERTHA_CACHELINE);
  for (int side = 0; side < 2; side++) {
    out->dirty_offset[side] = at;
    at = round_up(at + BERTHA_LINK_SLOTS / 8, BERTHA_CACHELINE);
  }
  out->left_out_offset = (uint32_t)at; /* in the page that the header takes anyway */
  at += BERTHA_LEFT_OUT_SIZE;
  for (int side = 0; side < 2; side++) {
    at = round_up(at, PAGE);
    out->sleeper_offset[side] = at;
    at += BERTHA_SLEEPERS * sizeof(struct bertha_sleeper);
  }
  at = round_up(at, PAGE);
  out->slot_offset = at;
  at = round_up(at + BERTHA_LINK_SLOTS * sizeof(struct bertha_slot), PAGE);
  out->ring_offset = at;
  out->total_size = at + (uint64_t)2 * BERTHA_LINK_SLOTS * out->ring_max;
}

size_t agent_link_size(void) {
  struct bertha_link_header h;
  agent_link_header(&h, 1, 1, 1, 1);
  return (size_t)h.total_size;
}

void agent_slots_read(const void *slots, size_t length, struct agent_use *out) {
  *out = (struct agent_use){0};
  for (size_t i = 0; (i + 1) * sizeof(struct bertha_slot) <= length; i++) {
    struct bertha_slot s;
    memcpy((void *)&s, (const char *)slots + i * sizeof s, sizeof s);
    out->connections += BERTHA_SLOT_USE(atomic_load_explicit(&s.state, memory_order_relaxed));
    for (int side = 0; side < 2; side++) {
      out->bytes += atomic_load_explicit(&s.dir[side].tail, memory_order_relaxed);
    }
  }
}

/* ---- table ---- */

int agent_table_read(const void *header, size_t length, uint64_t size, struct agent_table *out) {
  struct bertha_table_header h;
  if (length < sizeof h) {
    return -1;
  }
  memcpy((void *)&h, header, sizeof h);
  uint32_t used = atomic_load_explicit(&h.used, memory_order_relaxed);
  if (h.magic != BERTHA_MAGIC_TABLE || h.version != BERTHA_LAYOUT_VERSION ||
      h.conn_size < sizeof(struct bertha_conn_info) || h.conn_size > PAGE || h.conn_count > (1u << 20) ||
      h.conn_offset > size || (uint64_t)h.conn_count * h.conn_size > size - h.conn_offset) {
    return -1;
  }
  out->conn_count = h.conn_count;
  out->conn_size = h.conn_size;
  out->conn_offset = h.conn_offset;
  out->used = used < h.conn_count ? used : h.conn_count;
  return 0;
}

uint32_t agent_conns_read(const void *records, size_t length, uint32_t stride, uint32_t count,
                          struct agent_conn *out) {
  uint32_t found = 0;
  for (uint32_t i = 0; i < count && (size_t)(i + 1) * stride <= length; i++) {
    struct bertha_conn_info c;
    memcpy((void *)&c, (const char *)records + (size_t)i * stride, sizeof c);
    uint32_t kind = atomic_load_explicit(&c.kind, memory_order_relaxed);
    if (kind < BERTHA_CONN_PLAIN || kind > BERTHA_CONN_UNIX ||
        atomic_load_explicit(&c.refs, memory_order_relaxed) == 0) {
      continue;
    }
    struct agent_conn *o = &out[found++];
    o->index = i;
    o->kind = kind == BERTHA_CONN_SHM && BERTHA_CARRIED_BY(c.carried) != 0 ? BERTHA_CONN_CARRIED : kind;
    o->carried_by = BERTHA_CARRIED_BY(c.carried);
    o->beside = BERTHA_CARRIED_BESIDE(c.carried);
    o->boxed = (c.carried & BERTHA_CARRIED_BOXED) != 0;
    o->pid = c.pid;
    o->role = c.role;
    o->reason = c.reason;
    o->setup_us = c.setup_us;
    o->family = c.family;
    o->opened_ns = c.opened_ns;
    memcpy(o->local_addr, c.local_addr, sizeof o->local_addr);
    memcpy(o->peer_addr, c.peer_addr, sizeof o->peer_addr);
    o->local_port = c.local_port;
    o->peer_port = c.peer_port;
    o->tx_bytes = atomic_load_explicit(&c.tx_bytes, memory_order_relaxed);
    o->rx_bytes = atomic_load_explicit(&c.rx_bytes, memory_order_relaxed);
  }
  return found;
}

/* ---- processes and namespaces ---- */

void agent_die_with_parent(void) {
  prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
}

uint64_t agent_netns_cookie(int socket) {
  uint64_t cookie = 0;
  socklen_t size = sizeof cookie;
  return getsockopt(socket, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &size) == 0 ? cookie : 0;
}

int agent_netns_of(int socket) {
  int fd = ioctl(socket, SIOCGSKNS);
  return fd >= 0 ? fd : -errno;
}

int agent_enter_netns(int netns) {
  return setns(netns, CLONE_NEWNET) == 0 ? 0 : errno;
}

int agent_leave_netns(void) {
  int fd = open("/proc/1/ns/net", O_RDONLY | O_CLOEXEC);
  int done = fd >= 0 ? setns(fd, CLONE_NEWNET) : -1;
  if (fd >= 0) {
    close(fd);
  }
  return done == 0 || unshare(CLONE_NEWNET) == 0 ? 0 : errno;
}
