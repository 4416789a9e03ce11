/* What a process has of a connection by `unix`: how it comes by its end, and what is kept for the exchange. */
#include "unixends.h"

#include <sys/mman.h>

#include "conn.h"
#include "unixmail.h"
#include "unixpair.h"

struct ends *_Atomic unix_ends;

extern void bertha_close_hidden(int fd);

struct ends *unix_ends_made(void) {
  size_t size = sizeof(struct ends) * BERTHA_CONNS;
  void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  struct ends *none = NULL;
  if (p == MAP_FAILED) {
    return NULL;
  }
  if (!atomic_compare_exchange_strong(&unix_ends, &none, p)) {
    munmap(p, size); /* another thread was quicker */
  }
  return unix_ends;
}

/* What the exchange needs of descriptors is kept from the beginning on: once both ends are tied there is no way back to TCP,
 * and the program may have taken the last one by then. */
static bool keep_place(struct conn *c) {
  struct ends *e = ends_of(c);
  int place = e != NULL && c->link->mailbox >= 0 ? bertha_hidden_copy(c->link->mailbox) : -1;
  if (place >= 0) {
    *e = (struct ends){.unix_fd = -1, .tcp_fd = place};
  }
  return place >= 0;
}

/* Takes over an end, which is hidden and blocks, as a new one does. */
static void keep(struct conn *c, int fd, uint64_t number) {
  struct ends *e = ends_of(c);
  *e = (struct ends){.unix_fd = fd, .tcp_fd = e->tcp_fd, .number = number};
  if (conn_flags(c) & CONN_NONBLOCK) {
    unix_nonblock(c, true);
  }
}

static uint32_t offer_end(struct conn *c) {
  uint64_t number = atomic_load(&c->slot->end_held);
  int spare = spare_find(c->link, number);
  atomic_store(&c->slot->end_taken, spare >= 0 ? number : 0);
  if (spare >= 0) {
    keep(c, spare, number);
    return 0;
  }
  int pair[2];
  spare_missed(c->link);
  if (REAL(socketpair)(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
    return BERTHA_WHY_NO_DESCRIPTOR;
  }
  int error = mail_post(c->link, c->slot_index, BERTHA_SLOT_USE(atomic_load(&c->slot->state)), pair[1]);
  QUIET(close)(pair[1]);
  if (error != 0) {
    QUIET(close)(pair[0]);
    return error == EAGAIN ? UNIX_LATER : BERTHA_WHY_NO_DESCRIPTOR;
  }
  keep(c, bertha_hide_fd(pair[0]), 0);
  return 0;
}

uint32_t unix_offer(struct conn *c) {
  uint32_t why = keep_place(c) ? offer_end(c) : BERTHA_WHY_NO_DESCRIPTOR;
  if (why != 0) {
    unix_drop(c);
  }
  return why;
}

uint32_t unix_prepare(struct conn *c) {
  uint64_t number = 0;
  int fd = spare_fetch(c->link, &number);
  atomic_store_explicit(&c->slot->end_held, number, memory_order_relaxed);
  if (!keep_place(c)) {
    bertha_close_hidden(fd);
    return BERTHA_WHY_NO_DESCRIPTOR;
  }
  struct ends *e = ends_of(c);
  e->unix_fd = fd;
  e->number = number;
  e->expects = true;
  if (!mail_expect(c->link, c->slot_index, fd < 0)) {
    unix_drop(c);
    return BERTHA_WHY_NO_DESCRIPTOR;
  }
  return 0;
}

bool unix_letter_waits(const struct conn *c) {
  return c->link->plan.implementation == BERTHA_IMPL_UNIX && mail_waits(c->link);
}

void unix_shut_as_told(struct conn *c, int fd) {
  uint32_t flags = conn_flags(c);
  int saved = errno;
  if (flags & CONN_WR_SHUT) {
    REAL(shutdown)(fd, SHUT_WR);
  }
  if (flags & CONN_RD_SHUT) {
    REAL(shutdown)(fd, SHUT_RD);
  }
  errno = saved;
}

static void expect_no_more(struct conn *c, struct ends *e) {
  if (e->expects) {
    e->expects = false;
    mail_expect_no_more(c->link, c->slot_index);
  }
}

bool unix_collect(struct conn *c) {
  struct ends *e = ends_of(c);
  bool promised = !unix_take_back(c);
  if (e != NULL && e->number != 0 && e->number == atomic_load(&c->slot->end_taken)) {
    expect_no_more(c, e);
    if (conn_flags(c) & CONN_NONBLOCK) {
      unix_nonblock(c, true);
    }
    if (promised) {
      c->tx_phase = PHASE_RING;
      unix_shut_as_told(c, e->unix_fd);
    }
    return true;
  }
  if (e == NULL) {
    return false;
  }
  if (e->unix_fd > 0) { /* the server has not taken it */
    bertha_close_hidden(e->unix_fd);
    e->unix_fd = -1;
    e->number = 0;
    mail_expect(c->link, c->slot_index, true);
  }
  int fd = mail_take(c->link, c->slot_index);
  if (fd >= 0) {
    expect_no_more(c, e);
    keep(c, fd, 0);
  }
  return fd >= 0;
}

void unix_drop(struct conn *c) {
  struct ends *e = unix_ends != NULL ? &unix_ends[conn_index(c)] : NULL;
  if (e == NULL) {
    return;
  }
  if (e->unix_fd > 0) {
    bertha_close_hidden(e->unix_fd);
  }
  if (e->tcp_fd > 0) {
    bertha_close_hidden(e->tcp_fd);
  }
  expect_no_more(c, e);
  *e = (struct ends){0};
}

void unix_fd_moved(int from, int to) {
  for (uint32_t i = 0; unix_ends != NULL && i < BERTHA_CONNS && i < atomic_load(&bertha.table->used); i++) {
    unix_ends[i].unix_fd = unix_ends[i].unix_fd == from ? to : unix_ends[i].unix_fd;
    unix_ends[i].tcp_fd = unix_ends[i].tcp_fd == from ? to : unix_ends[i].tcp_fd;
  }
}
