/* Telling the other end that something has changed, at the least cost that will do.
 *
 * Awake: a bit in its dirty map.  Asleep in user space's keeping: the eventfd of the sleeper, rung once for
 * all that it waits for.  Anything else: one byte on the kernel's connection. */
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#include "abroad.h"
#include "agentc.h"
#include "conn.h"
#include "wait.h"

/* ---- bells of others, by the agent's number ------------------------------------------------------ */

#define BELLS 4096u
#define BELL_GONE 0xffffffffu /* in place of a number: one was here */
enum { PROBES = 16 };
static struct {
  _Atomic uint32_t id; /* written last */
  int fd;
  _Atomic uint8_t used; /* since the last look for one to do without */
} known_bells[BELLS];
static _Atomic uint32_t bells_lock;
static uint32_t bells_open;
static uint32_t bells_hand;
static _Atomic int64_t no_fetch_before;

static int known_bell(uint32_t id) {
  for (uint32_t i = id % BELLS, n = 0; n < PROBES; n++, i = (i + 1) % BELLS) {
    uint32_t at = atomic_load(&known_bells[i].id);
    if (at == id) {
      if (!atomic_load_explicit(&known_bells[i].used, memory_order_relaxed)) {
        atomic_store_explicit(&known_bells[i].used, 1, memory_order_relaxed);
      }
      return known_bells[i].fd;
    }
    if (at == 0) {
      break;
    }
  }
  return -1;
}

/* Sleepers come and go, and nobody tells us that one will not be rung again: so there is a bound. */
static uint32_t bells_allowed(void) {
  struct rlimit limit;
  uint64_t n = getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur / 32 : 0;
  return n < 16 ? 16 : n > 1024 ? 1024 : (uint32_t)n;
}

static bool is_bell(uint32_t i) {
  uint32_t id = atomic_load(&known_bells[i].id);
  return id != 0 && id != BELL_GONE;
}

static uint32_t one_not_used(void) {
  for (uint32_t n = 0; n < 2 * BELLS; n++) {
    uint32_t i = bells_hand++ % BELLS;
    if (is_bell(i) && !atomic_exchange(&known_bells[i].used, 0)) {
      return i;
    }
  }
  return 0;
}

/* Takes the descriptor over; the one that stands for it from now on. */
static int keep_bell(uint32_t id, int fd) {
  uint32_t i = id % BELLS;
  for (uint32_t n = 0; n < PROBES - 1 && is_bell(i); n++) {
    i = (i + 1) % BELLS;
  }
  fd = bertha_hide_fd(fd);
  if (is_bell(i) || bells_open >= bells_allowed()) {
    /* Another thread may be about to write to the one that goes: its number never stands for anything but a bell. */
    uint32_t victim = is_bell(i) ? i : one_not_used();
    int number = known_bells[victim].fd;
    atomic_store(&known_bells[victim].id, BELL_GONE);
    known_bells[victim].fd = -1;
    if (REAL(dup3)(fd, number, O_CLOEXEC) == number) {
      extern void bertha_close_hidden(int);
      bertha_close_hidden(fd);
      fd = number;
    }
  } else {
    bells_open++;
  }
  known_bells[i].fd = fd;
  atomic_store(&known_bells[i].used, 1);
  atomic_store(&known_bells[i].id, id);
  return fd;
}

static int fetch_bell(uint32_t id) {
  int64_t now = bertha_now_ns();
  uint32_t nobody = 0;
  if (id == BELL_GONE || now < atomic_load_explicit(&no_fetch_before, memory_order_relaxed) ||
      !atomic_compare_exchange_strong(&bells_lock, &nobody, bertha_tid())) {
    return -1; /* also when another thread is asking: that may take its time, and the connection's byte does as well */
  }
  int fd = known_bell(id);
  if (fd < 0) {
    struct bertha_bell body = {.bell = id}, reply;
    if (agent_call(BERTHA_OP_BELL_GET, &body, sizeof body, NULL, 0, &reply, sizeof reply, &fd, 1) != 0 ||
        fd < 0) {
      fd = -1;
      atomic_store(&no_fetch_before, now + 100000000);
    } else {
      fd = keep_bell(id, fd);
    }
  }
  bertha_unlock(&bells_lock);
  return fd;
}

void bell_after_fork(void) {
  atomic_store(&bells_lock, 0);
}

void bell_fd_moved(int from, int to) {
  for (uint32_t i = 0; i < BELLS; i++) {
    if (atomic_load(&known_bells[i].id) != 0 && known_bells[i].fd == from) {
      known_bells[i].fd = to;
    }
  }
}

/* Our own: registered, so that others may ask for it. */
uint32_t bell_create(int *fd) {
  int e = REAL(eventfd)(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (e < 0) {
    return 0;
  }
  struct bertha_bell body = {0}, reply = {0};
  if (agent_call(BERTHA_OP_BELL_NEW, &body, sizeof body, &e, 1, &reply, sizeof reply, NULL, 0) != 0 ||
      reply.bell == 0) {
    QUIET(close)(e);
    return 0;
  }
  *fd = bertha_hide_fd(e);
  return reply.bell;
}

/* Others have it too, and O_NONBLOCK is common to all who have it: one of them may have taken both the flag and the
 * count away since we were told that there is something to read. */
bool bell_drain(int fd) {
  static _Atomic bool no_nowait; /* Linux before 5.8 */
  uint64_t count;
  struct iovec part = {&count, sizeof count};
  if (bertha_real()->preadv2 != NULL && !atomic_load_explicit(&no_nowait, memory_order_relaxed)) {
    ssize_t n = QUIET(readv2)(fd, &part, 1, RWF_NOWAIT);
    if (n >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL)) {
      return n == (ssize_t)sizeof count;
    }
    atomic_store(&no_nowait, true);
  }
  return QUIET(read)(fd, &count, sizeof count) == (ssize_t)sizeof count;
}

/* The kernel tells of a reset once, to whichever call comes first.  If that is one for a bell, the program is still to be
 * told. */
static void keep_reset(struct conn *c) {
  if (errno != EAGAIN && conn_kind(c) == BERTHA_CONN_SHM && !conn_ended_in_order(c)) {
    conn_keep_error(c, -errno);
  }
}

/* ---- ringing ----------------------------------------------------------------------------------- */

/* One byte on the kernel's connection, at most one outstanding. */
void bell_on_connection(struct conn *c, int fd) {
  struct bertha_direction *d = conn_tx(c);
  /* Without a switch, yet to come or never made, the other end would take the byte for data. */
  if (fd < 0 || !tx_switched(c, fd) || atomic_load(&d->switch_at) == UINT64_MAX ||
      atomic_exchange(&d->bell_out, 1) != 0) {
    return;
  }
  if ((conn_flags(c) & (CONN_NODELAY_KNOWN | CONN_NODELAY_SET)) != (CONN_NODELAY_KNOWN | CONN_NODELAY_SET) &&
      !(conn_flags(c) & CONN_NODELAY_FORCED)) { /* Nagle would hold the second bell back for 40 ms */
    int on = 1;
    REAL(setsockopt)(fd, 6 /* IPPROTO_TCP */, 1 /* TCP_NODELAY */, &on, sizeof on);
    conn_set_flag(c, CONN_NODELAY_FORCED);
  }
  /* Counted like any other send: no bell comes behind the bytes of a ring that is given back (takeback.c). */
  atomic_fetch_add(&c->kernel_sends, 1);
  abroad_kernel_send(c->home, 1, 0);
  /* Who gives has the lock for as long as that lasts: past the lock it is over.  The word alone is the peer's to write. */
  _Atomic uint32_t *giver = c->home != NULL ? &c->home->tx_lock : &c->tx_lock;
  if (UNLIKELY(atomic_load(&d->want_kernel) == BERTHA_WANT_GIVING) && bertha_lock(giver)) {
    bertha_unlock(giver);
  }
  if (atomic_load(&d->ring_end) == UINT64_MAX) {
    atomic_fetch_add_explicit(&d->bells, 1, memory_order_release);
    /* never EAGAIN: a direction switches only while the kernel has room, and two bytes are the most it holds */
    if (QUIET(send)(fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) != 1) {
      atomic_fetch_sub_explicit(&d->bells, 1, memory_order_release);
      keep_reset(c);
    }
  }
  atomic_fetch_sub(&c->kernel_sends, 1);
  abroad_kernel_send(c->home, -1, 0);
}

/* False: by the byte. */
static bool ring(struct conn *c, int fd, struct bertha_sleeper *s) {
  /* A carrier has no bells of programs: the byte wakes them as well, and wait.c sees to those that wait for space. */
  uint64_t one = 1;
  int carriers = UNLIKELY(c->link->bells != NULL) ? c->link->bells[c->slot_index] : c->link->bell_fd;
  if (UNLIKELY(carriers >= 0) && QUIET(write)(carriers, &one, sizeof one) == sizeof one) {
    return true;
  }
  uint32_t id = bertha.is_carrier ? 0 : atomic_load_explicit(&s->bell, memory_order_relaxed);
  int bell = id != 0 ? known_bell(id) : -1;
  if (bell < 0 && id != 0) {
    bell = fetch_bell(id);
  }
  if (bell < 0 || QUIET(write)(bell, &one, sizeof one) != sizeof one || known_bell(id) != bell) {
    bell_on_connection(c, fd); /* also when it has gone meanwhile, and another one was rung for it */
    return false;
  }
  return true;
}

/* `among`: of several sets.  The byte may be taken off by one of the others before this one has looked at its descriptors
 * again, and then it sleeps on: so it stays armed. */
static bool wake(struct conn *c, int fd, uint32_t index, bool among) {
  if (index == 0 || index >= BERTHA_SLEEPERS) {
    return false;
  }
  struct bertha_sleeper *s = &c->link->sleepers[1 - c->side][index];
  uint32_t armed = atomic_load(&s->armed);
  if (armed == 0) {
    return false;
  }
  int64_t begin = bertha_now_ns();
  bool rung = ring(c, fd, s);
  if (rung) {
    spin_note_wake(bertha_now_ns() - begin);
  }
  if (rung || !among) {
    atomic_compare_exchange_strong(&s->armed, &armed, 0);
  }
  return true;
}

/* The first one last: one of the others may be about to take its place (core/eset_share.c). */
static void wake_all_sets(struct conn *c, int fd, struct bertha_watch *w, uint32_t more) {
  bool one = false;
  for (uint32_t n = more < BERTHA_WATCH_ALSO ? more : BERTHA_WATCH_ALSO, i = 0; i <= n; i++) {
    uint32_t name = atomic_load(i < n ? &w->also[i] : &w->epoll);
    bool exclusive = name & BERTHA_WATCH_ONE;
    if (!(exclusive && one) && wake(c, fd, name & ~BERTHA_WATCH_ONE, true)) {
      one |= exclusive;
    }
  }
}

static inline void wake_sets(struct conn *c, int fd, struct bertha_watch *w) {
  uint32_t more = atomic_load(&w->more);
  if (LIKELY(more == 0)) {
    wake(c, fd, atomic_load(&w->epoll) & ~BERTHA_WATCH_ONE, false);
  } else {
    wake_all_sets(c, fd, w, more);
  }
}

void signal_mark(struct conn *c) {
  _Atomic uint64_t *word = &c->link->dirty[1 - c->side][c->slot_index / 64];
  uint64_t bit = (uint64_t)1 << (c->slot_index % 64);
  atomic_thread_fence(memory_order_seq_cst);
  if (!(atomic_load(word) & bit)) {
    atomic_fetch_or(word, bit);
  }
}

/* A carrier does what it has to do for all its connections first: a program that it wakes finds many done. */
void bell_ring_all(struct conn *c, int fd) {
  int saved = errno;
  struct bertha_watch *w = &c->slot->watch[1 - c->side];
  wake_sets(c, fd, w);
  wake(c, fd, atomic_load(&w->rx), false);
  wake(c, fd, atomic_load(&w->tx), false);
  if (atomic_load(&w->kernel)) {
    bell_on_connection(c, fd);
  }
  errno = saved;
}

/* The tail has been published. */
void signal_data(struct conn *c, int fd) {
  int saved = errno;
  struct bertha_watch *w = &c->slot->watch[1 - c->side];
  signal_mark(c);
  if (UNLIKELY(bertha.is_carrier)) {
    conn_set_flag(c, CONN_DUE);
    return;
  }
  /* Behind signal_mark()'s fence: who borrows it just now sees what is in the ring, or is seen here. */
  if (UNLIKELY(c->link->loans != NULL) && (conn_borrows(c) ? borrow_out(c) : borrow_offered(c, fd))) {
    errno = saved;
    return;
  }
  if (UNLIKELY(c->link->loans != NULL)) {
    signal_mark(c); /* a carrier may have taken the mark while it was not its turn */
  }
  wake_sets(c, fd, w);
  wake(c, fd, atomic_load(&w->rx), false);
  if (atomic_load(&w->kernel)) {
    bell_on_connection(c, fd);
  }
  errno = saved;
}

/* The head has been published, and the producer had asked for space. */
void signal_space(struct conn *c, int fd) {
  int saved = errno;
  struct bertha_watch *w = &c->slot->watch[1 - c->side];
  signal_mark(c);
  if (UNLIKELY(bertha.is_carrier)) {
    conn_set_flag(c, CONN_DUE | CONN_DUE_ROOM);
    return;
  }
  wake_sets(c, fd, w);
  wake(c, fd, atomic_load(&w->tx), false);
  errno = saved;
}

/* ---- the consumer's half of the byte on the connection -------------------------------------------- */

bool bell_take_byte(struct conn *c, int fd) {
  char byte;
  ssize_t n = QUIET(recv)(fd, &byte, 1, MSG_DONTWAIT);
  if (n == 1) {
    c->bells_seen++;
  } else if (n < 0) {
    keep_reset(c);
  }
  return n == 1;
}

/* With the rx lock held and the ring drained: takes the byte off, unless the ring has filled meanwhile.
 * The order (forget, look, take) is what makes it safe against a producer that publishes between any two
 * of these steps; see the model in tests/model. */
void bell_settle(struct conn *c, int fd) {
  struct bertha_direction *d = conn_rx(c);
  int saved = errno;
  while (atomic_load(&c->bell_debt) > 0 && bell_take_byte(c, fd)) {
    atomic_fetch_sub(&c->bell_debt, 1);
  }
  if (atomic_load(&d->bell_out) != 0) {
    atomic_store(&d->bell_out, 0);
    atomic_thread_fence(memory_order_seq_cst);
    bool filled = atomic_load(&d->tail) != c->rx_head;
    if (!(filled && atomic_exchange(&d->bell_out, 1) == 0) && !bell_take_byte(c, fd)) {
      atomic_fetch_add(&c->bell_debt, 1); /* announced, still on its way */
    }
  }
  errno = saved;
}

/* With the rx lock held: whoever publishes from here on rings anew. */
static void forget_and_take(struct conn *c, int fd) {
  atomic_store(&conn_rx(c)->bell_out, 0);
  atomic_thread_fence(memory_order_seq_cst);
  if (!bell_take_byte(c, fd)) {
    atomic_fetch_add(&c->bell_debt, 1); /* announced, still on its way */
  }
}

/* As bell_settle, but whatever the ring holds: for an epoll set of ours, whose registration is edge-triggered.  A byte
 * that stayed in the queue would keep the next one from being sent, and so the set from being woken.  False: it has
 * to stay, because somebody else waits for the descriptor to be readable: perhaps another set. */
bool bell_clear(struct conn *c, int fd) {
  struct bertha_direction *d = conn_rx(c);
  if (atomic_load(&d->bell_out) == 0) {
    return true;
  }
  const struct bertha_watch *w = &c->slot->watch[c->side];
  if (atomic_load(&w->kernel) || atomic_load(&w->more) || !bertha_lock(&c->rx_lock)) {
    return false;
  }
  int saved = errno;
  bool ring = c->rx_phase == PHASE_RING; /* before, it lies behind bytes that are data */
  if (ring && atomic_load(&d->bell_out) != 0) {
    forget_and_take(c, fd);
  }
  errno = saved;
  bertha_unlock(&c->rx_lock);
  return ring;
}

/* Where the kernel serves a set (it is watched from outside), a byte that stayed until all has been read would keep the next one
 * from being sent, and with it the edge.  Whoever else waits for the descriptor to be readable needs it there. */
void bell_told(struct conn *c, int fd) {
  struct bertha_direction *d = conn_rx(c);
  const struct bertha_watch *w = &c->slot->watch[c->side];
  if (atomic_load(&d->bell_out) == 0 || atomic_load(&w->epoll) || atomic_load(&w->more) ||
      atomic_load(&c->kernel_regs) != 1 || atomic_load(&c->kernel_waiters) != 0) {
    return;
  }
  bool abroad = abroad_enter(c);
  if (!bertha_lock(&c->rx_lock)) {
    abroad_leave(c, abroad);
    return;
  }
  int saved = errno;
  bool sent = (uint32_t)atomic_load(&d->bells) != c->bells_seen; /* else there may be data in its place */
  if (c->rx_phase == PHASE_RING && sent && atomic_load(&d->bell_out) != 0) {
    forget_and_take(c, fd);
  }
  errno = saved;
  bertha_unlock(&c->rx_lock);
  abroad_leave(c, abroad);
}
