/* Connections that outlive an exec(): what the image before us has left (parcel.h), taken up before main(). */
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "abroad.h"
#include "agentc.h"
#include "conn.h"
#include "connlog.h"
#include "parcel.h"
#include "stdfile.h"

#ifndef BERTHA_VERSION
#define BERTHA_VERSION "0"
#endif

struct unpacking {
  struct parcel_header head;
  struct parcel_conn *conns; /* sorted by cookie */
  struct bertha_table_header *tables[PARCEL_TABLES];
  struct link *links[PARCEL_LINKS];
  struct conn **made; /* our record of each */
};

static int order(const void *a, const void *b) {
  uint64_t x = ((const struct parcel_conn *)a)->cookie;
  uint64_t y = ((const struct parcel_conn *)b)->cookie;
  return x < y ? -1 : x > y;
}

/* The first of those with this cookie; the count if there is none. */
static uint32_t find(const struct unpacking *u, uint64_t cookie) {
  uint32_t low = 0;
  uint32_t high = u->head.conn_count;
  while (low < high) {
    uint32_t middle = (low + high) / 2;
    if (u->conns[middle].cookie < cookie) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < u->head.conn_count && u->conns[low].cookie == cookie ? low : u->head.conn_count;
}

static struct conn *home_of(const struct unpacking *u, const struct parcel_conn *e) {
  struct bertha_table_header *t = e->home_table < PARCEL_TABLES ? u->tables[e->home_table] : NULL;
  return t != NULL ? abroad_record(t, e->home_index) : NULL;
}

static struct conn *sender_of(const struct unpacking *u, const struct parcel_conn *e) {
  return u->tables[0] != NULL ? abroad_record(u->tables[0], e->index) : NULL;
}

static struct link *link_of(const struct unpacking *u, const struct parcel_conn *e) {
  return e->link > 0 && e->link <= u->head.link_count ? u->links[e->link - 1] : NULL;
}

/* Nobody has the connection any more: what a close would have done. */
static void end_home(struct conn *home, struct link *l) {
  uint32_t kind = conn_kind(home);
  struct bertha_table_header *table = abroad_header_of(home);
  home->link = l; /* that of the image before us is nowhere any more */
  home->slot = l != NULL && home->slot_index < l->slot_count ? &l->slots[home->slot_index] : NULL;
  if (home->slot != NULL && kind == BERTHA_CONN_SHM) {
    atomic_store_explicit(&home->slot->dir[home->side & 1].closed, 1, memory_order_release);
    atomic_store_explicit(&home->slot->watch[home->side & 1].done, 1, memory_order_release);
  }
  connlog_write(home, -1);
  conn_free_in(table, home);
}

/* The references of the image before us end with it. */
static void settle_sender(const struct unpacking *u, const struct parcel_conn *e) {
  struct conn *home = home_of(u, e);
  struct conn *sender = sender_of(u, e);
  if (home == NULL || sender == NULL) {
    return;
  }
  struct conn *owed = e->taken > 0 ? sender : home;
  if (atomic_fetch_sub(&owed->info.refs, 1) != 1) {
    return;
  }
  if (owed != home) { /* it was abroad itself: its family held one reference at home */
    atomic_fetch_add(&home->info.tx_bytes, atomic_load(&owed->info.tx_bytes));
    atomic_fetch_add(&home->info.rx_bytes, atomic_load(&owed->info.rx_bytes));
    conn_free_in(u->tables[0], owed);
    if (atomic_fetch_sub(&home->info.refs, 1) != 1) {
      return;
    }
  }
  end_home(home, link_of(u, e));
}

/* The image before us had this process's number, and maybe an exec by another thread has ended its first one in the middle of
 * a copy: the lock is not our thread's, which has taken none yet. */
static void let_go(_Atomic uint32_t *lock) {
  uint32_t me = bertha_tid();
  atomic_compare_exchange_strong(lock, &me, 0);
}

static struct conn *take_up(const struct unpacking *u, const struct parcel_conn *e, int fd) {
  struct conn *home = home_of(u, e);
  struct link *l = link_of(u, e);
  bool shm = e->kind == BERTHA_CONN_SHM;
  if (home == NULL || (!shm && e->kind != BERTHA_CONN_PLAIN) ||
      (shm && (l == NULL || home->slot_index >= l->slot_count))) {
    return NULL;
  }
  struct conn *c = conn_new(fd, BERTHA_CONN_PLAIN);
  if (c == NULL) {
    return NULL;
  }
  c->info.role = home->info.role;
  c->info.reason = home->info.reason;
  c->info.setup_us = home->info.setup_us;
  c->info.opened_ns = home->info.opened_ns;
  memcpy(c->info.local_addr, home->info.local_addr, 16);
  memcpy(c->info.peer_addr, home->info.peer_addr, 16);
  c->info.local_port = home->info.local_port;
  c->info.peer_port = home->info.peer_port;
  c->info.family = home->info.family;
  atomic_store(&c->cookie, e->cookie);
  c->rcv_timeout_ns = home->rcv_timeout_ns;
  c->snd_timeout_ns = home->snd_timeout_ns;
  c->rcv_lowat = home->rcv_lowat;
  atomic_store(&c->flags, conn_flags(home));
  atomic_fetch_add(&home->info.refs, 1); /* our family's */
  c->home = home;
  if (shm) {
    c->link = l;
    c->side = home->side & 1;
    c->slot_index = home->slot_index;
    c->slot = &l->slots[c->slot_index];
    c->rx_mem = link_ring(l, c->slot_index, 1 - c->side);
    c->tx_mem = link_ring(l, c->slot_index, c->side);
    c->tx_limit = home->tx_limit <= l->ring_max ? home->tx_limit : l->ring_max;
    if (e->taken >
        0) { /* by an exec, and not by another process, which may have such a number in another namespace */
      let_go(&home->rx_lock);
      let_go(&home->tx_lock);
    }
    abroad_leave(c, abroad_enter(c));
    atomic_store_explicit(&c->info.kind, BERTHA_CONN_SHM, memory_order_release);
    if (conn_flags(c) &
        CONN_CARRIED) { /* its carrier did not answer (hop_leave), and we have no bell for it */
      conn_leave_ring(c, c->info.reason);
    }
  }
  return c;
}

static void take_descriptor(struct unpacking *u, int fd) {
  uint64_t cookie = bertha_cookie(fd);
  uint32_t i = cookie != 0 ? find(u, cookie) : u->head.conn_count;
  if (i == u->head.conn_count || conn_of(fd) != NULL) {
    return;
  }
  struct conn *c = u->made[i];
  if (c != NULL) {
    atomic_fetch_add(&c->info.refs, 1);
  } else {
    c = u->made[i] = take_up(u, &u->conns[i], fd);
  }
  if (c == NULL) {
    return;
  }
  conn_track(fd, c);
  /* C++'s streams may have been made before our constructor ran, and go past us: at least what they write. */
  if (fd <= 2 && dlsym(RTLD_DEFAULT, "_ZSt4cout") != NULL) {
    conn_leave_ring(c, BERTHA_WHY_INHERITED);
  }
  stdfile_follow(fd);
}

static void take_descriptors(struct unpacking *u) {
  DIR *list = opendir("/proc/self/fd");
  for (struct dirent *e; list != NULL && (e = readdir(list)) != NULL;) {
    int fd = e->d_name[0] >= '0' && e->d_name[0] <= '9' ? atoi(e->d_name) : -1;
    if (fd >= 0 && !bertha_is_hidden(fd)) {
      take_descriptor(u, fd);
    }
  }
  if (list != NULL) {
    closedir(list);
  }
}

static bool open_parcel(struct unpacking *u, int fd, uint64_t token) {
  struct parcel_header *h = &u->head;
  if (pread(fd, h, sizeof *h, 0) != sizeof *h || h->magic != PARCEL_MAGIC || h->token != token ||
      h->record != sizeof(struct conn) || strncmp(h->version, BERTHA_VERSION, sizeof h->version) != 0 ||
      h->link_count > PARCEL_LINKS || h->table_count > PARCEL_TABLES || h->conn_count > 4 * BERTHA_CONNS) {
    return false;
  }
  size_t size = h->conn_count * sizeof *u->conns;
  u->conns = malloc(size + 1);
  u->made = calloc(h->conn_count + 1, sizeof(struct conn *));
  if (u->conns == NULL || u->made == NULL || pread(fd, u->conns, size, sizeof *h) != (ssize_t)size) {
    return false;
  }
  qsort(u->conns, h->conn_count, sizeof *u->conns, order);
  for (uint32_t i = 0; i < h->table_count; i++) {
    u->tables[i] = abroad_table(h->tables[i]);
  }
  for (uint32_t i = 0; i < h->link_count; i++) {
    struct bertha_link_reply r = {.listener = h->links[i].listener, .index = h->links[i].index};
    r.plan = h->links[i].plan;
    r.claimant = h->links[i].claimant;
    u->links[i] = link_inherit(h->links[i].fd, (int)(h->links[i].side & 1), &r);
  }
  return u->tables[0] != NULL;
}

void inherit_connections(void) {
  const char *text = getenv(PARCEL_VARIABLE);
  if (text == NULL) {
    return;
  }
  char *end;
  long fd = strtol(text, &end, 10);
  uint64_t token = *end == ':' ? strtoull(end + 1, NULL, 10) : 0;
  unsetenv(PARCEL_VARIABLE);
  struct unpacking *u = calloc(1, sizeof *u);
  if (u != NULL && fd > 2 && fd < (long)BERTHA_FDS && bertha_table_open() && open_parcel(u, (int)fd, token)) {
    QUIET(close)((int)fd);
    take_descriptors(u);
    for (uint32_t i = 0; i < u->head.conn_count; i++) {
      settle_sender(u, &u->conns[i]);
    }
  }
  if (u != NULL) {
    free(u->conns);
    free(u->made);
    free(u);
  }
}

void inherit_fd_moved(int from, int to) {
  abroad_fd_moved(from, to);
}
