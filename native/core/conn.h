/* A connection's life: claim, attach, bytes out, bytes in, the end. */
#ifndef BERTHA_CONN_H
#define BERTHA_CONN_H

#include "borrow.h"
#include "shim.h"

/* attach.c */
/* After the kernel's connect() has succeeded, or is under way. */
void conn_connecting(struct conn *c, int fd, const struct sockaddr *to, bool under_way);
void conn_accepted(struct conn *c, int fd, struct listener *listener, const struct sockaddr *from);
/* Looks whether the other end has come: true when the connection is (now) on shared memory. */
bool conn_ripe(struct conn *c, int fd);
void slot_prepare(struct bertha_slot *s, const struct bertha_tuple *tuple, uint64_t netns);
void conn_tied(struct conn *c,
               uint32_t from); /* `from`, if it is still its kind, becomes what the link's plan says */
void conn_after_tied(struct conn *c, int fd); /* without the connection's locks */
void conn_make_plain(struct conn *c, uint32_t why);
/* untied.c: why clients may not know of the listener just now (0: they do), and why one did not come. */
uint32_t listener_standing(struct listener *l);
struct listener *listener_of(const struct conn *c); /* NULL: none, or made after this process was forked */
uint32_t conn_untied_reason(const struct conn *c);
void conn_broken(struct conn *c); /* the other end has written nonsense */
/* What is not on shared memory yet shall not come there any more: its kind from now on. */
bool conn_stays_plain(struct conn *c, uint32_t why); /* the server, if it has not seen a claim */
uint32_t conn_decide(struct conn *c, int fd, uint32_t why);
/* The program asked for something that only the kernel's connection has. */
void conn_stay_in_kernel(struct conn *c, int fd, uint32_t why);
void conn_unwatch(struct conn *c);            /* the other end need not ring, if nobody is in the kernel */
void conn_refresh_watch(struct conn *c);      /* after kernel_waiters or kernel_regs went down */
void conn_last_close(struct conn *c, int fd); /* before the kernel's close */
void conn_after_close(struct conn *c);        /* after it */
void conn_release(struct conn *c, int fd);    /* one reference less, without closing anything */
/* again.c.  An exec is about to close this descriptor (the books know it afterwards as closed); it has failed. */
void conn_leave(struct conn *c, int fd);
void conn_stay(struct conn *c, int fd);
void conn_dissolved(struct conn *c, int fd); /* again.c: connect() to nowhere has succeeded */
/* A client's, whose connect() has failed: the kernel takes another one on the same socket. */
bool conn_came_to_nothing(struct conn *c, int fd);
/* The other end has closed, having read all of ours: a reset by the kernel then answers a bell byte that came after that. */
bool conn_ended_in_order(const struct conn *c);
bool address_of(const struct sockaddr *sa, uint8_t addr[16], uint16_t *port);
bool address_is_v4(const uint8_t addr[16]); /* v4-mapped */

/* A thread may sleep on a connection that another one closes; its record may be a new connection's when it wakes up. */
static inline uint32_t conn_life(const struct conn *c) {
  return atomic_load_explicit(&c->life, memory_order_acquire);
}
static inline bool conn_closed(const struct conn *c, int fd, uint32_t life) {
  return conn_life(c) != life || conn_of(fd) != c;
}
/* For who looks without the lock of those that read: of now, or of a moment ago. */
static inline uint64_t conn_rx_head(const struct conn *c) {
  return __atomic_load_n(&c->rx_head, __ATOMIC_RELAXED);
}
/* After kernel_waiters or kernel_regs went up: the other end rings on the connection from now on.  It is another value
 * each time, also after a 0, so that who found nobody there, and is about to say so, does not do it over our head. */
static inline void conn_watch_kernel(struct conn *c) {
  struct bertha_slot *slot = __atomic_load_n(&c->slot, __ATOMIC_RELAXED);
  if (LIKELY(slot != NULL)) { /* else another thread has just withdrawn the claim */
    uint16_t number =
        (uint16_t)(atomic_fetch_add(&c->watch_number, 1) | 0x8000u); /* the slot begins with 1 */
    atomic_store(&slot->watch[c->side].kernel, number);
    borrow_end(c);
  }
}
/* Around a wait in the kernel on the descriptor itself.  A claim's: look at it once more (conn_ripe) before the sleep,
 * because what came until now may not have been rung for (wait_claimed). */
static inline uint32_t conn_kernel_sleep(struct conn *c) {
  atomic_fetch_add(&c->kernel_waiters, 1);
  if (UNLIKELY(conn_kind(c) == BERTHA_CONN_CLAIMED)) {
    conn_watch_kernel(c);
  } else if (UNLIKELY(conn_kind(c) == BERTHA_CONN_UNIX && c->slot != NULL &&
                      !atomic_load_explicit(&c->slot->watch[c->side].kernel, memory_order_relaxed))) {
    conn_watch_kernel(c); /* in a signal handler, within unix_wait() */
  }
  return conn_life(c);
}
static inline void conn_kernel_awake(struct conn *c, uint32_t life) {
  if (conn_life(c) == life) {
    atomic_fetch_sub(&c->kernel_waiters, 1);
    conn_refresh_watch(c);
  }
}

struct kernel_sleep { /* what conn_kernel_sleep() said, for one that is cancelled */
  struct conn *conn;
  uint32_t life;
};
void conn_kernel_cancelled(void *kernel_sleep);

/* rx.c, tx.c: a byte count, 0 at the end of the stream, or -errno */
ssize_t conn_recv(struct conn *c, int fd, const struct iovec *iov, int count, int flags);
ssize_t conn_send(struct conn *c, int fd, const struct iovec *iov, int count, int flags);
/* As above for a connection in any state. */
ssize_t stream_recv(struct conn *c, int fd, const struct iovec *iov, int count, int flags);
ssize_t stream_send(struct conn *c, int fd, const struct iovec *iov, int count, int flags);
/* One try at the kernel's half before the producer's switch; -EINPROGRESS: look again, something changed. */
ssize_t recv_kernel_part(struct conn *c, int fd, const struct iovec *iov, int count, int flags);
/* One try at a connection in any state.  `*whole`: what served it did so with MSG_WAITALL; there is no more to be asked
 * for. */
ssize_t recv_once(struct conn *c, int fd, const struct iovec *iov, int count, int flags, bool *whole);
/* Copies out of the ring, with the rx lock held. */
ssize_t ring_read(struct conn *c, const struct iovec *iov, int count, size_t skip, int flags);
size_t conn_readable_bytes(struct conn *c);
bool conn_before_mark(struct conn *c,
                      int fd); /* SIOCATMARK: no, whatever the kernel says, which has the mark */
void conn_keep_error(struct conn *c, ssize_t n);
/* In place of a result: this very thread is in the middle of another call on the connection, whose signal handler we are
 * in.  Not waited for: the program is told EAGAIN. */
#define OWN_LOCK (-(ssize_t)EDEADLK)
/* Free space in the ring, held under the lock, for a producer that reads into it directly (sendfile): NULL
 * when there is none just now (`*error` then says why: EAGAIN: full). */
uint8_t *tx_reserve(struct conn *c, int fd, size_t *room, int *error);
void tx_commit(struct conn *c, int fd, size_t n);
bool tx_switched(struct conn *c, int fd); /* switches if it can */
/* Around a call that hands bytes to the kernel by itself (sendfile, splice).  False: look again, the ring has them now. */
struct tx_kernel { /* whose books it stands in: a record may be another connection's by the end */
  uint32_t life;
  struct conn *home;
  uint32_t home_life;
};
bool tx_kernel_begin(struct conn *c, int fd, struct tx_kernel *k);
void tx_kernel_end(struct conn *c, const struct tx_kernel *k, ssize_t sent);
void tx_cut_short(struct conn *c, int fd); /* the kernel has not taken all of it */
void tx_to_kernel(struct conn *c);         /* with the tx lock held: from here on, for good */
/* In the kernel just now, bells among them, by all who have the connection: those of other families change at home. */
static inline uint32_t tx_kernel_sends(const struct conn *c) {
  return atomic_load(c->home != NULL ? &c->home->kernel_sends : &c->kernel_sends);
}
void conn_leave_ring(struct conn *c, uint32_t why); /* asks both directions back to the kernel */

/* What a slot says of a ring, which others write, keeps us within its memory. */
static inline bool ring_is_sound(const struct conn *c, uint32_t size, uint64_t used) {
  return size != 0 && (size & (size - 1)) == 0 && size <= c->link->ring_max && used <= size;
}

/* How much the producer lets lie in its ring. */
static inline uint32_t ring_bound(const struct conn *c) {
  return c->tx_bound != 0 && c->tx_bound < c->tx_size ? c->tx_bound : c->tx_size;
}

/* Whoever takes from the ring tells us from now on. */
static inline void conn_want_space(struct conn *c) {
  atomic_fetch_add_explicit(&c->room_wanted, 1, memory_order_relaxed);
  atomic_store(&conn_tx(c)->space_wanted, 1);
  atomic_thread_fence(memory_order_seq_cst);
}

/* Something has changed at our own end that an epoll set of ours looks at. */
static inline void conn_changed_here(const struct conn *c) {
  uint64_t bit = (uint64_t)1 << (c->slot_index % 64);
  atomic_fetch_or(&c->link->dirty[c->side][c->slot_index / 64], bit);
}

/* look.c */
/* As the kernel: nothing to be had is waited for, or EAGAIN where nobody waits. */
ssize_t look_for_nothing(struct conn *c, int fd, int flags);
/* MSG_PEEK | MSG_WAITALL: until all that is asked for is there, or with SO_RCVLOWAT as much as that.  Of what no carrier can
 * hold, as much as it holds. */
ssize_t look_patiently(struct conn *c, int fd, const struct iovec *iov, int count, int flags);

/* takeback.c */
/* Leaves the ring with nothing left in it, if the other end answers: true: the kernel's connection is all there is. */
bool conn_take_back(struct conn *c, int fd, uint32_t why);
void conn_give_back(struct conn *c, int fd); /* the other end asked for that */
void ask_no_more(struct conn *c);            /* with the rx lock held */
static inline bool conn_asks_back(const struct conn *c) {
  uint32_t want = atomic_load_explicit(&conn_rx(c)->want_kernel, memory_order_relaxed);
  return want == BERTHA_WANT_ALL_BACK || want == BERTHA_WANT_GIVING;
}
void tx_give_back(struct conn *c, int fd); /* with the tx lock held */
static inline bool conn_asked_back(const struct conn *c) {
  return atomic_load_explicit(&conn_tx(c)->want_kernel, memory_order_relaxed) == BERTHA_WANT_ALL_BACK;
}

/* ready.c: which of `want` (poll's bits) hold now, as the rings say; POLLERR and POLLHUP always count. */
short conn_events(struct conn *c, int fd, short want);
short conn_events_any(struct conn *c, int fd,
                      short want); /* whatever SO_RCVLOWAT says: for a wait of our own */
void conn_kernel_events(struct conn *c, uint32_t epoll_events); /* what the kernel reported of its half */
bool conn_look_at_kernel(struct conn *c, int fd);               /* true: something was learnt */

/* bell.c */
void signal_mark(struct conn *c); /* the other end finds that something has changed, and is not woken */
void signal_data(struct conn *c, int fd);
void signal_space(struct conn *c, int fd);
void bell_ring_all(struct conn *c, int fd); /* a carrier, for both of the above */
void bell_settle(struct conn *c, int fd);   /* with the rx lock held, the ring drained */
bool bell_clear(struct conn *c,
                int fd); /* an edge of our own set has told of the byte: false: it has to stay */
/* The kernel is about to have told of it by its edge, in its one registration: what comes from now on is another edge. */
void bell_told(struct conn *c, int fd);
void bell_on_connection(struct conn *c, int fd);
void bell_fd_moved(int from, int to);
void bell_after_fork(void);
bool bell_take_byte(struct conn *c, int fd);
uint32_t bell_create(int *fd); /* 0: none */
bool bell_drain(int fd);       /* our own, without waiting: whether there was something */

/* SO_RCVLOWAT is the kernel's again, where bells were too short for it. */
static inline void conn_low_water_back(const struct conn *c, int fd) {
  if (UNLIKELY(c->rcv_lowat > 1)) {
    REAL(setsockopt)(fd, SOL_SOCKET, SO_RCVLOWAT, &c->rcv_lowat, sizeof c->rcv_lowat);
  }
}

/* The first `cap` bytes of an iovec that starts `skip` bytes in; returns the count of parts. */
int iov_window(struct iovec *to, int max, const struct iovec *from, int count, size_t skip, size_t cap);
enum { IOV_PARTS = 64 };

/* It is told once, to whichever thread comes first. */
static inline int conn_take_error(struct conn *c) {
  return atomic_load_explicit(&c->error, memory_order_relaxed) != 0 ? atomic_exchange(&c->error, 0) : 0;
}

static inline size_t iov_bytes(const struct iovec *iov, int count) {
  size_t n = 0;
  for (int i = 0; i < count; i++) {
    n += iov[i].iov_len;
  }
  return n;
}

#endif
