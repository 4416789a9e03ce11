/* Before an exec: leave what the next image needs to go on with the connections that it inherits (parcel.h).
 *
 * In a process of our own (fork and exec, or exec alone) the references of this process end with its image; the next
 * image does the arithmetic, so that an exec that fails has changed nothing.  In a vfork child, which shares its
 * parent's memory, and before a posix_spawn, the next image gets a reference of its own for each connection. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "abroad.h"
#include "agentc.h"
#include "conn.h"
#include "connlog.h"
#include "hop.h"
#include "orphans.h"
#include "fsize.h"
#include "parcel.h"
#include "relay.h"
#include "room.h"
#include "unixpair.h"

#ifndef BERTHA_VERSION
#define BERTHA_VERSION "0"
#endif
enum { HIGH = 900, BATCH = 64, LOOKS = 20 };
#define YOUNG_NS 2000000 /* a connection whose client may be about to claim it */
#define LOOK_NS 20000

bool handover_due(void) {
  if (!bertha.enabled || !bertha.table_ready) {
    return false;
  }
  for (uint32_t fd = 0; fd < bertha.max_fd; fd++) {
    if (conn_of((int)fd) != NULL) {
      return true;
    }
  }
  return false;
}

struct packing {
  struct handover *h;
  bool stranger;
  bool bare;
  bool moved;
  uint32_t count;
  uint32_t batch;
  int looks; /* left, for all connections together */
  struct parcel_conn space[BATCH];
};

static bool flush(struct packing *p) {
  size_t size = p->batch * sizeof p->space[0];
  off_t at = (off_t)(sizeof p->h->head + (p->count - p->batch) * sizeof p->space[0]);
  p->batch = 0;
  return size == 0 || pwrite(p->h->fd, p->space, size, at) == (ssize_t)size;
}

static uint32_t link_number(struct parcel_header *head, const struct link *l) {
  for (uint32_t i = head->link_count; i > 0; i--) {
    if (head->links[i - 1].fd == l->fd) {
      return i;
    }
  }
  if (head->link_count == PARCEL_LINKS || l->fd < 0) {
    return 0;
  }
  head->links[head->link_count] = (struct parcel_link){.fd = l->fd,
                                                       .index = l->index,
                                                       .listener = l->listener,
                                                       .plan = l->plan,
                                                       .claimant = l->claimant,
                                                       .side = l->side};
  return ++head->link_count;
}

static uint32_t table_number(struct parcel_header *head, int fd) {
  for (uint32_t i = 0; i < head->table_count; i++) {
    if (head->tables[i] == fd) {
      return i;
    }
  }
  if (head->table_count == PARCEL_TABLES) {
    return 0;
  }
  head->tables[head->table_count] = fd;
  return head->table_count++;
}

/* Does this process's image pass the descriptor on?  In a vfork child the number may be another one's by now. */
static bool survives(const struct packing *p, const struct conn *c, int fd) {
  if (p->h->spawn && p->moved && (conn_flags(c) & CONN_SPAWN)) {
    const int *at = p->h->copied;
    while (at != NULL && *at >= 0 && *at != fd) {
      at++;
    }
    if (at == NULL || *at == fd) {
      return true;
    }
  }
  int flags = REAL(fcntl)(fd, F_GETFD);
  return flags >= 0 && !(flags & FD_CLOEXEC);
}

static void pack(struct packing *p, struct conn *c, int fd, uint32_t taken, bool passed_on) {
  struct parcel_header *head = &p->h->head;
  struct parcel_conn e = {
      .cookie = conn_cookie(c, fd), .index = conn_index(c), .taken = taken, .kind = conn_kind(c)};
  e.home_index = e.index;
  if (c->home != NULL) {
    int table = abroad_table_of(c->home, &e.home_index);
    e.home_table = table_number(head, table);
  }
  if (passed_on) {
    atomic_store(&(c->home != NULL ? c->home : c)->info.holder, BERTHA_HELD_ABROAD);
  } else {
    orphans_not_mine(c);
  }
  if (e.kind == BERTHA_CONN_SHM) {
    e.link = link_number(head, c->link);
    if (e.link == 0) { /* too many */
      conn_leave_ring(c, BERTHA_WHY_INHERITED);
    }
  }
  if (taken == 0) {
    struct conn *home = c->home != NULL ? c->home : c;
    atomic_fetch_add(&home->info.refs, 1);
  }
  p->space[p->batch++] = e;
  p->count++;
  if (p->batch == BATCH) {
    flush(p);
  }
}

static struct handover_relay *relay_of(struct handover *h, uint64_t cookie) {
  for (unsigned i = 0; i < h->relay_count; i++) {
    if (h->relays[i].cookie == cookie) {
      return &h->relays[i];
    }
  }
  return NULL;
}

/* A descriptor of the new program is to be a relay's end: after an exec this process's own, of a spawn by its actions.
 * One relay for a connection, whatever the number of its descriptors: two would share out what comes. */
static bool relayed(struct packing *p, struct conn *c, int fd) {
  struct handover *h = p->h;
  struct handover_relay *one = relay_of(h, conn_cookie(c, fd)), *r = one;
  if (one == NULL || h->spawn) {
    if ((h->spawn && h->copied == NULL) || h->relay_count == HANDOVER_RELAYS) {
      return false;
    }
    r = &h->relays[h->relay_count];
    if (one == NULL ? !relay_begin(&r->relay, c, fd) : !relay_again(&r->relay, &one->relay)) {
      return false;
    }
    r->cookie = conn_cookie(c, fd);
    r->fd = fd;
    h->relay_count++;
  }
  return h->spawn || REAL(dup2)(r->relay.end, fd) == fd;
}

static void let_relays_go(struct handover *h) {
  for (unsigned i = 0; i < h->relay_count; i++) {
    relay_go(&h->relays[i].relay);
  }
  h->relay_count = 0;
}

/* Nobody over there knows how to read a ring. */
static void leave_bare(struct packing *p, struct conn *c, int fd, bool passed_on) {
  if (passed_on && !conn_stays_plain(c, BERTHA_WHY_INHERITED) &&
      conn_decide(c, fd, BERTHA_WHY_INHERITED) == BERTHA_CONN_SHM &&
      (relay_of(p->h, conn_cookie(c, fd)) != NULL || !conn_take_back(c, fd, BERTHA_WHY_PASSED_ON))) {
    c->info.reason = BERTHA_WHY_PASSED_ON;
    if (!relayed(p, c, fd)) {
      conn_leave_ring(c, BERTHA_WHY_PASSED_ON);
    }
  }
  if (p->stranger || p->h->spawn) {
    return;
  }
  if (passed_on) {
    conn_forget(fd);
    conn_release(c, fd);
  } else if (c->home != NULL || (conn_flags(c) & CONN_DGRAM)) {
    close(fd); /* the family that it came from goes on counting */
  } else {
    conn_leave(c, fd);
    p->h->left = true;
  }
}

/* A server that accepts and executes at once is quicker than its client, which claims after its connect().  An exec
 * takes long enough that a short wait does not matter. */
static uint32_t decide(struct packing *p, struct conn *c, int fd) {
  hop_leave(c, fd);
  uint64_t age = connlog_clock() - c->info.opened_ns;
  while (conn_kind(c) == BERTHA_CONN_MAYBE && age < YOUNG_NS && p->looks > 0 && !conn_ripe(c, fd)) {
    struct timespec moment = {0, LOOK_NS};
    REAL(syscall)(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &moment, NULL);
    p->looks--;
  }
  uint32_t kind = conn_decide(c, fd, BERTHA_WHY_INHERITED);
  if (kind == BERTHA_CONN_UNIX && !p->stranger) {
    unix_settle(c, fd); /* then the descriptor itself is all there is to hand over */
  }
  return kind;
}

/* This process's own descriptors, by its books. */
static void pack_process(struct packing *p, bool passed_on) {
  for (uint32_t i = 0; i < bertha.max_fd; i++) {
    int fd = (int)i;
    struct conn *c = conn_of(fd);
    if (c == NULL || survives(p, c, fd) != passed_on) {
      continue;
    }
    if (p->bare) {
      leave_bare(p, c, fd, passed_on);
      continue;
    }
    uint32_t kind = passed_on ? decide(p, c, fd) : conn_kind(c);
    if (!p->h->spawn) {
      pack(p, c, fd, 1, passed_on);
    } else if (passed_on && kind == BERTHA_CONN_SHM) {
      pack(p, c, fd, 0, true);
    }
  }
}

/* A number that the child gave to another socket has its connection's cookie from before that: leaves() in calls/descriptor.c. */
static struct conn *by_cookie(uint64_t cookie, int fd) {
  struct conn *c = conn_of(fd);
  if (c != NULL && conn_cookie(c, fd) == cookie) {
    return c;
  }
  for (uint32_t i = 0; i < bertha.max_fd; i++) {
    c = conn_of((int)i);
    if (c != NULL && conn_cookie(c, (int)i) == cookie) {
      return c;
    }
  }
  return NULL;
}

struct directory_entry { /* getdents64(2) */
  uint64_t inode;
  int64_t next;
  uint16_t size;
  uint8_t type;
  char name[];
};

/* A vfork child's descriptors are its own, and our books know nothing of what it did with them. */
static void pack_stranger(struct packing *p) {
  char space[2048] __attribute__((aligned(8)));
  int list = QUIET(open)("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  long size;
  while (list >= 0 && (size = REAL(syscall)(SYS_getdents64, list, space, sizeof space)) > 0) {
    for (long at = 0; at < size;) {
      const struct directory_entry *e = (const void *)(space + at);
      at += e->size;
      int fd = e->name[0] >= '0' && e->name[0] <= '9' ? atoi(e->name) : -1;
      int flags = fd >= 0 ? REAL(fcntl)(fd, F_GETFD) : -1;
      uint64_t cookie = flags >= 0 && !(flags & FD_CLOEXEC) ? bertha_cookie(fd) : 0;
      struct conn *c = cookie != 0 ? by_cookie(cookie, fd) : NULL;
      if (c == NULL) {
        continue;
      }
      if (p->bare) {
        leave_bare(p, c, fd, true);
      } else if (decide(p, c, fd) == BERTHA_CONN_SHM) {
        pack(p, c, fd, 0, true); /* once for each descriptor: the next image gives back what it finds twice */
      }
    }
  }
  if (list >= 0) {
    QUIET(close)(list);
  }
}

static int32_t *descriptor_at(struct parcel_header *head, uint32_t i) {
  return i < head->table_count ? &head->tables[i] : &head->links[i - head->table_count].fd;
}

/* Descriptors that stay open across the exec: copies, because other threads may be handing over the same ones, and would close
 * them for us when they are done.  Where there is no number left, the thing itself. */
static void lend(struct handover *h) {
  for (uint32_t i = 0; i < h->head.table_count + h->head.link_count; i++) {
    int32_t *fd = descriptor_at(&h->head, i);
    int copy = REAL(fcntl)(*fd, F_DUPFD, HIGH);
    h->lent[i] = copy >= 0;
    if (copy >= 0) {
      *fd = copy;
    } else {
      REAL(fcntl)(*fd, F_SETFD, 0);
    }
  }
}

static void take_back(struct handover *h) {
  for (uint32_t i = 0; i < h->head.table_count + h->head.link_count; i++) {
    int fd = *descriptor_at(&h->head, i);
    if (h->lent[i]) {
      QUIET(close)(fd);
    } else {
      REAL(fcntl)(fd, F_SETFD, FD_CLOEXEC);
    }
  }
}

static void number(char *to, uint64_t value) { /* snprintf may take locks */
  char digits[24];
  int n = 0;
  do {
    digits[n++] = (char)('0' + value % 10);
    value /= 10;
  } while (value != 0);
  while (n > 0) {
    *to++ = digits[--n];
  }
  *to = '\0';
}

static bool new_parcel(struct handover *h) {
  if (!fsize_allows(sizeof h->head + (size_t)BERTHA_CONNS * sizeof(struct parcel_conn))) {
    return false;
  }
  int fd = REAL(memfd_create)("bertha-parcel", 0);
  if (fd < 0) {
    return false;
  }
  int high = REAL(fcntl)(fd, F_DUPFD, HIGH);
  if (high >= 0) {
    QUIET(close)(fd);
    fd = high;
  }
  h->fd = fd;
  h->head.magic = PARCEL_MAGIC;
  h->head.record = sizeof(struct conn);
  h->head.token = (uint64_t)bertha_now_ns() * 0x9e3779b97f4a7c15u;
  strncpy(h->head.version, BERTHA_VERSION, sizeof h->head.version - 1);
  h->head.tables[0] = bertha.table_fd;
  h->head.table_count = 1;
  return true;
}

void handover_begin(struct handover *h, const char *path, bool spawn, bool moved, char *const from[],
                    char *env[]) {
  h->active = false;
  h->left = h->leaving = false;
  h->relay_count = 0;
  h->spawn = spawn;
  h->fd = -1;
  memset(&h->head, 0, sizeof h->head);
  int n = 0;
  for (int i = 0; from != NULL && from[i] != NULL; i++) {
    if (strncmp(from[i], PARCEL_VARIABLE "=", sizeof PARCEL_VARIABLE) != 0) {
      env[n++] = from[i];
    }
  }
  env[n] = NULL;
  enum target target = path != NULL ? target_of(path, from) : TARGET_BARE;
  if (target == TARGET_FAILS) {
    return;
  }
  int saved = errno;
  struct packing p = {.h = h, .stranger = bertha_in_forked_stranger(), .moved = moved, .looks = LOOKS};
  if (!spawn && !p.stranger) {
    h->leaving = true;
    orphans_leaving(true);
  }
  p.bare = target == TARGET_BARE || bertha.table_fd < 0 || !room_stays() || !new_parcel(h);
  if (p.stranger) {
    pack_stranger(&p);
  } else {
    pack_process(&p, true);
    pack_process(&p, false);
  }
  if (!spawn) {
    let_relays_go(h);
  }
  h->head.conn_count = p.count;
  if (!p.bare && p.count == 0) {
    QUIET(close)(h->fd);
  } else if (!p.bare) {
    h->active = true;
    lend(h);
    if (!flush(&p) || pwrite(h->fd, &h->head, sizeof h->head, 0) != sizeof h->head) {
      handover_failed(h);
    } else {
      strcpy(h->variable, PARCEL_VARIABLE "=");
      number(h->variable + strlen(h->variable), (uint64_t)h->fd);
      strcat(h->variable, ":");
      number(h->variable + strlen(h->variable), h->head.token);
      env[n] = h->variable;
      env[n + 1] = NULL;
    }
  }
  errno = saved;
}

void handover_spawned(struct handover *h) {
  let_relays_go(h);
  if (h->active) {
    int saved = errno;
    take_back(h);
    QUIET(close)(h->fd);
    errno = saved;
  }
}

/* The references that the next image was given come back. */
void handover_failed(struct handover *h) {
  if (h->leaving) {
    h->leaving = false;
    orphans_leaving(false);
  }
  for (uint32_t fd = 0; h->left && fd < bertha.max_fd; fd++) {
    struct conn *c = conn_of((int)fd);
    int flags = c != NULL && c->home == NULL ? REAL(fcntl)((int)fd, F_GETFD) : 0;
    if (flags >= 0 && (flags & FD_CLOEXEC)) {
      conn_stay(c, (int)fd);
    }
  }
  h->left = false;
  for (; h->relay_count > 0; h->relay_count--) {
    relay_cancel(&h->relays[h->relay_count - 1].relay);
  }
  if (!h->active) {
    return;
  }
  int saved = errno;
  struct parcel_conn e;
  for (uint32_t i = 0; i < h->head.conn_count; i++) {
    if (pread(h->fd, &e, sizeof e, (off_t)(sizeof h->head + i * sizeof e)) == sizeof e && e.taken == 0) {
      struct conn *c = conn_by_index(e.index);
      atomic_fetch_sub(c->home != NULL ? &c->home->info.refs : &c->info.refs, 1);
    }
  }
  take_back(h);
  QUIET(close)(h->fd);
  h->active = false;
  errno = saved;
}
