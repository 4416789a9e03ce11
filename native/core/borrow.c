#include "borrow.h"

#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>

#include "agentc.h"
#include "conn.h"
#include "eset.h"
#include "libcrypto.h"
#include "records.h"
#include "unixpair.h"
#include "waiter.h"

enum {
  IN_MAX = BERTHA_LOAN_IN,
  SCRATCH = IN_MAX + RECORD_MAX + RECORD_BYTES_MAX + 2 * RECORD_REPLY_MAX + RECORD_MORE,
  PENALTY_FIRST = 32,
  PENALTY_MOST = 4096,
  CALM = 256, /* receptions after which it is as if it had never been given back */
};

struct borrowed { /* by this process */
  struct record_keys *keys;
  struct eset *set;
  uint32_t next; /* index + 1 */
  bool listed;
  uint32_t life;          /* of the connection that this is about */
  uint32_t skip;          /* looks before it is wanted again */
  uint32_t penalty;       /* and how many the next time */
  uint32_t receptions;    /* since it was taken */
  bool unread;            /* the socket may have more, for which the ring had no room */
  _Atomic uint32_t asked; /* ASKED_*, by a signal handler that has interrupted the one who has the lock */
};
enum { ASKED_OUT = 1, ASKED_END = 2 };

static struct {
  _Atomic uint32_t lock;        /* of the list; after a loan's own */
  struct borrowed *_Atomic all; /* by the connection's index */
  uint32_t first;
  _Atomic bool over; /* the process ends, and libcrypto before it */
} mine;

static struct borrowed *borrowed_of(const struct conn *c) {
  struct borrowed *all = atomic_load_explicit(&mine.all, memory_order_acquire);
  if (UNLIKELY(all == NULL)) {
    size_t size = sizeof *all * BERTHA_CONNS;
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      return NULL;
    }
    if (!atomic_compare_exchange_strong(&mine.all, &all, p)) {
      munmap(p, size); /* another thread was quicker */
    } else {
      all = p;
    }
  }
  return &all[conn_index(c)];
}

static struct bertha_loan *loan_of(const struct conn *c) {
  return link_loan(c->link, c->slot_index);
}

/* With the loan's lock. */
static bool is_mine(const struct conn *c, const struct bertha_loan *loan) {
  return conn_borrows(c) && loan->owner == (uint32_t)bertha.pid &&
         atomic_load(&c->slot->loan_turn) == BERTHA_TURN_PROGRAM;
}

/* ---- the list ------------------------------------------------------------------------------------ */

static void list(struct conn *c, struct borrowed *b) {
  bool taken = bertha_lock(&mine.lock);
  b->listed = true;
  b->next = mine.first;
  mine.first = conn_index(c) + 1;
  if (taken) {
    bertha_unlock(&mine.lock);
  }
}

static void unlist(const struct conn *c, struct borrowed *b) {
  struct borrowed *all = atomic_load(&mine.all);
  bool taken = bertha_lock(&mine.lock);
  for (uint32_t *at = &mine.first; b->listed && *at != 0; at = &all[*at - 1].next) {
    if (*at == conn_index(c) + 1) {
      *at = b->next;
      break;
    }
  }
  b->listed = false;
  if (taken) {
    bertha_unlock(&mine.lock);
  }
}

/* ---- giving back --------------------------------------------------------------------------------- */

/* With the loan's lock; the carrier goes on at once, so nothing of the loan is touched afterwards. */
static void give_back(struct conn *c, struct borrowed *b) {
  int saved = errno;
  REAL(epoll_ctl)(b->set->epfd, EPOLL_CTL_DEL, unix_tcp_fd(c, -1), NULL);
  atomic_fetch_sub(&b->set->borrowed, 1);
  unlist(c, b);
  records_close(b->keys);
  b->keys = NULL;
  b->penalty = b->receptions >= CALM ? 0 : b->penalty;
  b->penalty = b->penalty == 0 ? PENALTY_FIRST : b->penalty < PENALTY_MOST ? 2 * b->penalty : PENALTY_MOST;
  b->skip = b->penalty;
  atomic_store(&c->slot->loan_wanted, BERTHA_LOAN_NOT_NOW);
  conn_clear_flag(c, CONN_BORROWS);
  atomic_store(&c->slot->loan_turn, BERTHA_TURN_CARRIER);
  errno = saved;
}

/* Gives the loan's lock back; what a handler has found it taken for is done now.  `gave`: the connection is the carrier's
 * again, who is told. */
static void leave(struct conn *c, struct bertha_loan *loan, struct borrowed *b, bool gave) {
  bertha_unlock(&loan->lock);
  if (gave) {
    signal_data(c, -1);
  }
  uint32_t asked = atomic_load(&b->asked) != 0 ? atomic_exchange(&b->asked, 0) : 0;
  if (UNLIKELY(asked & ASKED_END)) {
    borrow_end(c);
  } else if (UNLIKELY(asked & ASKED_OUT)) {
    signal_data(c, -1);
  }
}

void borrow_end(struct conn *c) {
  struct borrowed *b = UNLIKELY(conn_borrows(c)) ? borrowed_of(c) : NULL;
  if (LIKELY(b == NULL)) {
    return;
  }
  struct bertha_loan *loan = loan_of(c);
  if (!bertha_lock(&loan->lock)) {
    atomic_fetch_or(&b->asked, ASKED_END);
    return;
  }
  bool ours = is_mine(c, loan);
  if (ours) {
    give_back(c, b);
  }
  leave(c, loan, b, ours);
}

void borrow_keep(struct conn *c, const struct eset *s) {
  const struct borrowed *b = UNLIKELY(conn_borrows(c)) ? borrowed_of(c) : NULL;
  if (UNLIKELY(b != NULL) && b->set != s) {
    borrow_end(c);
  }
}

static struct conn *first_of(const struct eset *s) {
  struct borrowed *all = atomic_load(&mine.all);
  struct conn *found = NULL;
  if (all == NULL || !bertha_lock(&mine.lock)) {
    return NULL;
  }
  for (uint32_t at = mine.first; at != 0 && found == NULL; at = all[at - 1].next) {
    found = s == NULL || all[at - 1].set == s ? conn_by_index(at - 1) : NULL;
  }
  bertha_unlock(&mine.lock);
  return found;
}

void borrow_end_all(const struct eset *s) {
  for (struct conn *c = first_of(s); c != NULL; c = first_of(s)) {
    borrow_end(c);
    if (conn_borrows(c)) { /* this very thread is in the middle of it */
      return;
    }
  }
}

/* What the parent had borrowed it has given back before. */
void borrow_after_fork(void) {
  atomic_store(&mine.lock, 0);
  mine.first = 0;
}

/* ---- towards the network ------------------------------------------------------------------------- */

/* False: the kernel has not taken it all, or has an error to tell; the carrier is to go on. */
static bool send_sealed(struct conn *c, struct bertha_loan *loan, const uint8_t *from, size_t size) {
  size_t sent = 0;
  int tcp = unix_tcp_fd(c, -1);
  while (sent < size) {
    ssize_t n = QUIET(send)(tcp, from + sent, size - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n >= 0) {
      sent += (size_t)n;
    } else if (errno != EINTR) {
      loan->error = errno == EAGAIN ? 0 : errno;
      break;
    }
  }
  memcpy(loan->out, from + sent, size - sent);
  loan->out_at = 0;
  loan->out_size = (uint32_t)(size - sent);
  return sent == size;
}

/* Who has lacked room in the ring, as if a carrier had made it. */
static void made_room(struct conn *c) {
  struct bertha_direction *d = conn_tx(c);
  atomic_thread_fence(memory_order_seq_cst);
  if (UNLIKELY(atomic_load_explicit(&d->space_wanted, memory_order_relaxed)) &&
      atomic_exchange(&d->space_wanted, 0)) {
    conn_changed_here(c);
  }
}

static bool send_all(struct conn *c, struct bertha_loan *loan, struct borrowed *b, uint8_t *scratch) {
  struct bertha_direction *d = conn_tx(c);
  for (;;) {
    uint64_t tail = atomic_load_explicit(&d->tail, memory_order_acquire);
    uint64_t head = atomic_load_explicit(&d->head, memory_order_relaxed);
    uint64_t used = tail - head;
    if (used == 0) {
      return true;
    }
    uint32_t size = atomic_load_explicit(&d->size, memory_order_relaxed);
    uint64_t base = atomic_load_explicit(&d->base, memory_order_relaxed);
    if (!ring_is_sound(c, size, used)) {
      conn_broken(c);
      return false;
    }
    size_t n = used < RECORD_BYTES_MAX ? (size_t)used : RECORD_BYTES_MAX;
    uint32_t at = (uint32_t)(head - base) & (size - 1);
    size_t first = n < size - at ? n : size - at;
    size_t sealed =
        record_seal(b->keys, &loan->records, c->tx_mem + at, first, c->tx_mem, n - first, scratch);
    if (sealed == 0) {
      return false;
    }
    atomic_store_explicit(&d->head, head + n, memory_order_release);
    atomic_fetch_add_explicit(&loan->bytes, n, memory_order_relaxed);
    bool all = send_sealed(c, loan, scratch, sealed);
    made_room(c);
    if (!all) {
      return false;
    }
  }
}

bool borrow_out(struct conn *c) {
  struct borrowed *b = borrowed_of(c);
  struct bertha_loan *loan = loan_of(c);
  if (b == NULL) {
    return false;
  }
  if (!bertha_lock(&loan->lock)) {
    atomic_fetch_or(&b->asked, ASKED_OUT);
    return true;
  }
  int saved = errno;
  bool mine_still = is_mine(c, loan);
  bool good = false;
  if (mine_still) {
    struct waiter_room room = waiter_room(SCRATCH);
    good = room.at != NULL && send_all(c, loan, b, room.at);
    if (!good) {
      give_back(c, b);
    }
    waiter_room_back(&room);
  }
  leave(c, loan, b, false); /* whoever called tells the carrier */
  errno = saved;
  return good;
}

/* ---- from the network ---------------------------------------------------------------------------- */

struct arrival {
  bool data; /* something new is in the ring */
  bool ends; /* the carrier is to go on */
};

static size_t ring_free(const struct conn *c) {
  const struct bertha_direction *d = conn_rx(c);
  uint32_t size = atomic_load_explicit(&d->size, memory_order_relaxed);
  uint64_t used = atomic_load_explicit(&d->tail, memory_order_relaxed) - conn_rx_head(c);
  return ring_is_sound(c, size, used) ? size - (size_t)used : 0;
}

/* There is room for it. */
static void ring_put(struct conn *c, const uint8_t *from, size_t n) {
  struct bertha_direction *d = conn_rx(c);
  uint32_t size = atomic_load_explicit(&d->size, memory_order_relaxed);
  uint64_t tail = atomic_load_explicit(&d->tail, memory_order_relaxed);
  uint64_t base = atomic_load_explicit(&d->base, memory_order_relaxed);
  if (tail == conn_rx_head(c)) { /* the same cache lines again, as any producer does (tx.c) */
    base = tail;
    atomic_store_explicit(&d->base, base, memory_order_relaxed);
  }
  uint32_t at = (uint32_t)(tail - base) & (size - 1);
  size_t first = n < size - at ? n : size - at;
  memcpy(c->rx_mem + at, from, first);
  memcpy(c->rx_mem, from + first, n - first);
  atomic_store_explicit(&d->tail, tail + n, memory_order_release);
}

/* The records that are whole; how many bytes those were. */
static size_t open_all(struct conn *c, struct bertha_loan *loan, struct borrowed *b, const uint8_t *in,
                       size_t have, uint8_t *scratch, struct arrival *a) {
  uint8_t *plain = scratch;
  uint8_t *reply = scratch + RECORD_MAX;
  size_t at = 0;
  while (!a->ends) {
    size_t size = record_size(in + at, have - at), n, reply_size;
    const char *why;
    if (size == 0 || (size != SIZE_MAX && size > have - at)) {
      break;
    }
    if (size != SIZE_MAX && ring_free(c) < size) {
      b->unread = true;
      break;
    }
    enum record_what what = size == SIZE_MAX ? RECORD_BAD
                                             : record_open(b->keys, &loan->records, in + at, size, plain, &n,
                                                           reply, &reply_size, &why);
    if (what == RECORD_BAD) {
      loan->failed = 1;
      a->ends = true;
      break;
    }
    at += size;
    loan->ended = what == RECORD_END;
    a->ends = what == RECORD_END || (reply_size > 0 && !send_sealed(c, loan, reply, reply_size));
    if (n > 0) {
      ring_put(c, plain, n);
      atomic_fetch_add_explicit(&loan->bytes, n, memory_order_relaxed);
      a->data = true;
    }
  }
  return at;
}

static void receive(struct conn *c, struct bertha_loan *loan, struct borrowed *b, bool ended,
                    uint8_t *scratch, struct arrival *a) {
  uint8_t *in = scratch;
  size_t have = loan->in_size < IN_MAX ? loan->in_size : IN_MAX;
  bool more = true;
  memcpy(in, loan->in, have);
  b->unread = false;
  for (;;) {
    size_t done = open_all(c, loan, b, in, have, scratch + IN_MAX, a); /* at first what had no room before */
    memmove(in, in + done, have - done);
    have -= done;
    if (!more || a->ends ||
        b->unread) { /* else what is left is a part of a record: there is room for the rest */
      break;
    }
    ssize_t n = QUIET(recv)(unix_tcp_fd(c, -1), in + have, IN_MAX - have, MSG_DONTWAIT);
    if (n > 0) {
      more = ended || (size_t)n == IN_MAX - have; /* less: an edge tells when there is more (epoll(7)) */
      have += (size_t)n;
    } else if (n == 0 || errno != EINTR) {
      loan->error = n < 0 && errno != EAGAIN ? errno : 0;
      a->ends = n == 0 || loan->error != 0; /* an end is the carrier's to judge */
      more = false;
    }
  }
  memcpy(loan->in, in, have);
  loan->in_size = (uint32_t)have;
}

bool borrow_in(struct conn *c, bool ended) {
  struct borrowed *b = borrowed_of(c);
  struct bertha_loan *loan = loan_of(c);
  struct arrival a = {.data = false};
  if (b == NULL || !bertha_lock(&loan->lock)) {
    return false; /* a handler, in the middle of it: as if nothing had come yet */
  }
  int saved = errno;
  struct eset *set = NULL;
  if (is_mine(c, loan)) {
    struct waiter_room room = waiter_room(SCRATCH);
    a.ends = room.at == NULL;
    if (room.at != NULL) {
      receive(c, loan, b, ended, room.at, &a);
    }
    b->receptions++;
    set = b->set;
    if (a.ends) {
      give_back(c, b);
    }
    if (a.data) {
      conn_changed_here(c);
    }
    waiter_room_back(&room);
  }
  leave(c, loan, b, a.ends);
  if (a.data && UNLIKELY(atomic_load(&set->asleep) != 0)) {
    eset_told(set); /* another thread's sleep is over */
  }
  errno = saved;
  return a.data;
}

bool borrow_unread(const struct conn *c) {
  const struct borrowed *all = atomic_load_explicit(&mine.all, memory_order_acquire);
  return all != NULL && all[conn_index(c)].unread;
}

/* ---- taking -------------------------------------------------------------------------------------- */

/* Nobody else has it, or waits in the kernel's set and would take its edges; and nothing is about to end. */
static bool suits(const struct eset *s, const struct conn *c) {
  enum {
    NOT_WITH = CONN_FIN | CONN_RST | CONN_RD_SHUT | CONN_WR_SHUT | CONN_BROKEN | CONN_CUT | CONN_RELAYED |
               CONN_LEFT | CONN_BACK | CONN_HOP_LEFT
  };
  return c->side == BERTHA_SIDE_CLIENT && c->home == NULL && atomic_load(&c->info.refs) == 1 &&
         !(conn_flags(c) & NOT_WITH) && c->error == 0 && c->rx_phase == PHASE_RING &&
         c->tx_phase == PHASE_RING && !s->plain && !s->inherited && !s->adopted && !s->kin &&
         s->inner_count == 0 && atomic_load(&s->outers) == 0 && atomic_load(&c->kernel_regs) == 0 &&
         atomic_load(&c->kernel_waiters) == 0;
}

/* A thread that waits for it by other means, or is about to end it, sees that it is borrowed, or is seen here. */
static bool wanted_back(const struct conn *c) {
  const struct bertha_watch *w = &c->slot->watch[c->side];
  const struct bertha_direction *rx = conn_rx(c), *tx = conn_tx(c);
  atomic_thread_fence(memory_order_seq_cst);
  return atomic_load(&w->rx) != 0 || atomic_load(&w->tx) != 0 || atomic_load(&w->kernel) != 0 ||
         atomic_load(&w->more) != 0 || atomic_load(&rx->want_kernel) != BERTHA_WANT_RING ||
         atomic_load(&rx->closed) != 0 || atomic_load(&tx->closed) != 0 || (conn_flags(c) & CONN_RD_SHUT);
}

static void end_at_exit(void) {
  if (!bertha_in_forked_stranger()) {
    atomic_store(&mine.over, true);
    borrow_end_all(NULL);
  }
}

static bool have_ciphers(void) {
  static _Atomic int once;
  if (libcrypto() == NULL) {
    return false;
  }
  if (atomic_exchange(&once, 1) == 0) {
    atexit(end_at_exit); /* behind libcrypto's own, so before it */
  }
  return true;
}

static bool watch_socket(const struct eset *s, int fd, const struct conn *c) {
  struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET,
                          .data.u64 = eset_borrowed_data(&s->regs[fd], fd)};
  return REAL(epoll_ctl)(s->epfd, EPOLL_CTL_ADD, unix_tcp_fd(c, -1), &e) == 0;
}

static void take(struct eset *s, int fd, struct conn *c, struct bertha_loan *loan, struct borrowed *b) {
  uint32_t turn = BERTHA_TURN_OFFERED;
  if (!bertha_lock(&loan->lock)) {
    return;
  }
  if (!suits(s, c) || atomic_load(&mine.over) ||
      !atomic_compare_exchange_strong(&c->slot->loan_turn, &turn, BERTHA_TURN_PROGRAM)) {
    bertha_unlock(&loan->lock);
    return;
  }
  int saved = errno;
  loan->owner = (uint32_t)bertha.pid;
  b->keys = records_open(&loan->records);
  b->set = s;
  b->receptions = 0;
  b->unread = false;
  atomic_store(&b->asked, 0);
  atomic_fetch_add(&s->borrowed, 1);
  conn_set_flag(c, CONN_BORROWS);
  list(c, b);
  struct waiter_room room = waiter_room(SCRATCH);
  /* Once more: a fork that began meanwhile has counted, and then looked at the list. */
  bool good = b->keys != NULL && room.at != NULL && !wanted_back(c) && suits(s, c) &&
              !atomic_load(&mine.over) && watch_socket(s, fd, c) && send_all(c, loan, b, room.at);
  if (!good) {
    give_back(c, b);
  }
  waiter_room_back(&room);
  leave(c, loan, b, !good);
  errno = saved;
}

/* Before the carrier takes what has just come into the ring, and its offer back with it: a program that asks and waits for the
 * answer has it in no set until then. */
bool borrow_offered(struct conn *c, int fd) {
  struct bertha_loan *loan = loan_of(c);
  if (atomic_load_explicit(&c->slot->loan_turn, memory_order_acquire) != BERTHA_TURN_OFFERED || fd < 0) {
    return false;
  }
  struct eset *s = eset_with(fd);
  struct borrowed *b = s != NULL ? borrowed_of(c) : NULL;
  if (b == NULL || !bertha_try_lock(&s->lock)) {
    return false;
  }
  const struct reg *r = &s->regs[fd];
  if (s->epfd >= 0 && r->state == REG_RING && r->conn == conn_index(c) + 1) {
    take(s, fd, c, loan, b);
  }
  bertha_unlock(&s->lock);
  return conn_borrows(c);
}

void borrow_look(struct eset *s, int fd, struct conn *c) {
  struct bertha_loan *loan = loan_of(c);
  struct borrowed *b = borrowed_of(c);
  if (b == NULL) {
    return;
  }
  if (conn_borrows(c)) {
    if (b->unread) {
      borrow_in(c, false);
    }
    return;
  }
  if (b->life != conn_life(c)) {
    b->life = conn_life(c);
    b->skip = b->penalty = 0;
  }
  if (atomic_load_explicit(&c->slot->loan_turn, memory_order_acquire) == BERTHA_TURN_OFFERED) {
    take(s, fd, c, loan, b);
  } else if (atomic_load_explicit(&c->slot->loan_wanted, memory_order_relaxed) != BERTHA_LOAN_WANTED) {
    if (b->skip > 0) {
      b->skip--;
    } else if (suits(s, c) && have_ciphers()) {
      atomic_store(&c->slot->loan_wanted, BERTHA_LOAN_WANTED);
    }
  }
}
