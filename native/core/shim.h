/* What every part of the shim shares: the process's state, its connections, and the few words
 * (side, direction, phase) that the rest is written in. */
#ifndef BERTHA_SHIM_H
#define BERTHA_SHIM_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layout.h"
#include "protocol.h"
#include "quiet.h"
#include "real.h"

#define BERTHA_EXPORT __attribute__((visibility("default")))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define BERTHA_TLS __thread __attribute__((tls_model("initial-exec")))

#define BERTHA_CONNS 65536u
#define BERTHA_FDS (1u << 20) /* descriptors above are not ours to follow: they stay plain */

static inline void bertha_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield" ::: "memory");
#endif
}

/* Where the bytes of one direction are, seen from one end. */
enum phase {
  PHASE_BEFORE = 0, /* the kernel: the producer has not switched yet */
  PHASE_RING = 1,
  PHASE_AFTER = 2, /* the kernel again, for good */
};

struct listener { /* of this process: one it listens on, or one it has connected to */
  uint64_t id;
  uint64_t generation;         /* of the directory when registered */
  int pid;                     /* the process that registered */
  _Atomic int asked;           /* the last process that tried to register it anew */
  _Atomic int64_t known_since; /* to an agent that had not known it before; 0: long ago */
  _Atomic bool passes_on; /* its connections are given to other programs: none is tied before it is read */
  _Atomic uint8_t late;   /* looks to spare for a first byte: the last time there was none yet (core/rx.c) */
  bool serves;            /* a socket of ours listens */
  uint32_t pins;          /* threads that are about to make a link to it */
  int64_t since;          /* when it was retired; 0: never */
  size_t size;            /* of the claims */
  struct bertha_claims_header *claims;
  struct listener *next;
};

struct unix_mail { /* an end that has come for a slot, and for which of its claims */
  int fd;          /* hidden; 0: none */
  uint32_t use;
  int room; /* hidden; kept for one that is to come; -1: to come, and nothing is kept any more; 0: none is to come */
};
enum { UNIX_SPARES = 8 };
struct unix_spares { /* one end each of socketpairs that are made ahead (core/unixspare.c) */
  uint32_t count;
  uint32_t target; /* server: how many to have */
  struct {
    uint64_t number;
    int fd; /* hidden */
  } end[UNIX_SPARES];
};

struct link { /* this process's mapping of a link */
  struct bertha_link_header *header;
  uint8_t *base;
  size_t size;
  uint64_t listener;
  uint32_t index;
  uint32_t slot_count;
  uint32_t ring_max;
  size_t ring_offset;
  uint8_t side;
  struct bertha_plan plan;
  struct bertha_claimant claimant; /* server: whose claims come by it */
  int fd;                          /* hidden; -1 once given up */
  int owner_pid;                   /* the process that may take slots (client) */
  _Atomic uint64_t *dirty[2];
  struct bertha_sleeper *sleepers[2];
  struct bertha_slot *slots;
  uint8_t *loans; /* of its slots; NULL: none */
  struct bertha_claims_header *claims;
  _Atomic uint32_t lock; /* of the free list */
  uint32_t free_count;
  uint32_t next_fresh;
  int left; /* the slot last left by us and perhaps not yet by the server; -1 */
  uint16_t *free_slots;
  int bell_fd;            /* hidden; to a carrier (hop.h): the eventfd by which it is woken; else -1 */
  bool apart;             /* to a carrier: each slot has an entry among its sleepers (hop.h) */
  int *bells;             /* hidden; to a carrier in Python: one for each slot, -1: not made yet; else NULL */
  int mailbox;            /* hidden; `unix`: where the server posts the client's ends; -1: none */
  struct unix_mail *mail; /* client: what has come for each slot */
  uint32_t mail_expected; /* and for how many one is still to come */
  struct unix_spares spares;
  uint8_t addr[16]; /* client: how its listener was reached */
  uint16_t port;
  _Atomic bool retired;
  _Atomic uint32_t pairs; /* what sockets for datagrams have on it (core/local.h): it stays */
  _Atomic uint32_t named; /* entries among its sleepers that threads and epoll sets of this process have */
  int64_t since;          /* when it was retired; 0: never */
  _Atomic int64_t no_sleeper_before; /* when to look for an entry among our sleepers again; 0: now */
  _Atomic uint32_t sets_lock;        /* of what follows (core/eset_share.c) */
  struct slink *sets;                /* what each epoll set of this process has of it */
  _Atomic uint64_t shared[BERTHA_LINK_SLOTS / 64]; /* the slots that are in more than one set */
  struct link *next;
};

enum conn_flag {
  CONN_NONBLOCK = 1u << 0,
  CONN_FIN = 1u << 1, /* the kernel has delivered the peer's FIN */
  CONN_RD_SHUT = 1u << 2,
  CONN_WR_SHUT = 1u << 3,
  CONN_NODELAY_SET = 1u << 4, /* the program's own setting */
  CONN_NODELAY_FORCED = 1u << 5,
  CONN_CORK_SET = 1u << 6,
  CONN_NO_ATTACH = 1u << 7, /* this connection is to stay in the kernel */
  CONN_LOGGED = 1u << 8,
  CONN_LAST_RECV_DATA = 1u << 9,
  CONN_RST = 1u << 10,
  CONN_NODELAY_KNOWN = 1u << 11,
  CONN_LINGER_0 = 1u << 12, /* SO_LINGER with no time: close() resets */
  CONN_SPAWN = 1u << 15,    /* a posix_spawn may be told to pass it on */
  CONN_BOUND = 1u << 14,    /* the program chose the local port */
  CONN_TX_SHORT = 1u << 16, /* the kernel did not take all of the last send: its next room is news */
  CONN_CARRIED = 1u << 17,  /* its chunnels run in a carrier (core/carried.h) */
  CONN_DGRAM = 1u << 19,    /* a UDP socket (core/dgram.h) */
  CONN_LOCAL =
      1u << 23, /* a UDP socket that has, or may have, others of this host to speak with (core/local.h) */
  CONN_NAMED = 1u << 18,    /* its chunnels run in the program, which has named them (core/carried.h) */
  CONN_BROKEN = 1u << 13,   /* the ring's contents make no sense */
  CONN_HOP_LEFT = 1u << 21, /* its ring to the carrier was given back */
  CONN_OWN =
      1u << 22, /* a listener whose connections' chunnels run in the program, which refuses by itself */
  CONN_CUT = 1u << 20,      /* its carrier was seen to have ended without an end of the stream */
  CONN_KERNELS = 1u << 26,  /* has an option that only the kernel serves, and that accept() passes on */
  CONN_LEFT = 1u << 25,     /* its last descriptor is, or was, about to be closed by an exec */
  CONN_DUE = 1u << 23,      /* a carrier's: the program may wait for what was done (hop.h) */
  CONN_DUE_ROOM = 1u << 28, /* and that was not data alone */
  CONN_INQ = 1u << 28,      /* a program's: recvmsg() tells how much is left (calls/inq.c) */
  CONN_PENDING = 1u << 24,  /* claimed, but told to nobody: the kernel is not done with its connect() */
  CONN_PROBED = 1u << 27,   /* whether its other end, which has ended, is still there */
  CONN_RELAYED = 1u << 30,  /* a program without the shim has it by a relay (relayed.c) */
  CONN_BORROWS = 1u << 31,  /* the program has its carrier's turn (core/borrow.h) */
  CONN_BACK = 1u << 29,     /* nothing is, or comes, in a ring: whoever has its descriptor has it all */
  /* A listener's, of what accept() returns (tcp(7), socket(7)). */
  CONN_INHERITED =
      CONN_NODELAY_SET | CONN_NODELAY_KNOWN | CONN_CORK_SET | CONN_LINGER_0 | CONN_KERNELS | CONN_INQ,
};

/* A connection (or a socket that may become one).  Lives in the table, which forked children share: the
 * positions must be one truth for parent and child.  Pointers in it are good in the process that made the
 * connection and in those forked from it afterwards, which are the only ones that have its descriptor. */
struct conn {
  struct bertha_conn_info info;
  _Atomic uint32_t rx_lock; /* tid of the holder */
  _Atomic uint32_t tx_lock;
  _Atomic uint32_t flags;
  _Atomic uint32_t next_free;
  struct link *link;
  uint64_t listener; /* 0: none; each process has a record of its own of it: listener_of() */
  struct bertha_slot *slot;
  uint32_t slot_index;
  uint32_t link_index; /* the link's number, which means the same in each process */
  uint8_t side;
  _Atomic uint8_t rx_phase; /* with the rx lock; a hint for who looks without it */
  uint8_t tx_phase;
  uint8_t carrier; /* which one has it */
  uint8_t *rx_mem;
  uint8_t *tx_mem;
  uint64_t rx_head; /* private truth of what the slot's `head` and `tail` say */
  uint64_t tx_tail;
  uint64_t tx_base;
  uint64_t tx_head;    /* the slot's `head` as last looked at: it may be ahead of that */
  uint64_t trim_tail;  /* tx_tail when it was last looked at (trim.c) */
  uint64_t tx_look_at; /* up to which position a small message need not look at it */
  uint32_t tx_size;
  uint32_t tx_limit;    /* size may grow to this */
  uint32_t tx_bound;    /* the program's own SO_SNDBUF, which bounds what is on its way; 0: none */
  _Atomic uint64_t krx; /* bytes that went by the kernel before the ring */
  _Atomic uint64_t ktx;
  _Atomic uint32_t kernel_sends;   /* in the kernel just now */
  uint32_t kernel_began;           /* of those, how many there have ever been, with the tx lock */
  _Atomic uint32_t kernel_waiters; /* threads asleep in the kernel on the descriptor itself */
  _Atomic uint32_t kernel_regs;    /* epoll registrations that the kernel alone serves */
  _Atomic uint16_t watch_number;   /* the last that conn_watch_kernel() gave */
  _Atomic uint32_t bell_debt;      /* bell bytes announced and not yet arrived */
  uint32_t bells_seen;
  _Atomic int32_t error;        /* errno that the kernel reported and the program has not seen */
  _Atomic uint32_t shuts;       /* how often we have shut it down: an edge for everybody */
  _Atomic uint32_t room_wanted; /* how often there was too little in the ring for us: then more is news */
  int64_t rcv_timeout_ns;       /* 0: none */
  int64_t snd_timeout_ns;
  int32_t rcv_lowat;
  struct linger linger;    /* the program's SO_LINGER, where the socket has the guard's (guard.c) */
  uint32_t sends;          /* every eighth looks whether the other end is alive */
  uint64_t chosen;         /* client: the listener that was chosen for it; 0: none (core/brief.h) */
  _Atomic uint32_t life;   /* another one for each connection that has this record */
  _Atomic uint64_t cookie; /* the kernel's name for its socket, once conn_cookie() was asked; 0: not yet */
  uint64_t plan;           /* client: what the agent said (core/plans.h); 0: nothing */
  uint32_t scope;          /* CONN_DGRAM: the connected peer's, of a link-local address (ipv6(7)) */
  uint16_t segment;        /* CONN_DGRAM: UDP_SEGMENT (udp(7)), of which a carrier's socket knows nothing */
  _Atomic uint64_t relay_ends; /* of the last relay: ports of the program's end and of its own (relayed.c) */
  _Atomic uint32_t relay_has;  /* it holds bytes of the program's */
  struct conn *home; /* inherited by exec: the record that is the truth (core/abroad.h); else NULL */
};

struct fd_entry {
  _Atomic uint32_t conn; /* index + 1, 0: none */
  _Atomic uint32_t set;  /* epoll: SET_* */
};

struct bertha_process {
  int pid;
  bool enabled;
  bool require;
  bool table_ready;
  bool log_open;
  bool must_serve;           /* its policy requires chunnels as a server: without an agent it serves nobody */
  bool must_connect;         /* and as a client */
  bool must_serve_datagrams; /* the same for UDP */
  bool must_send_datagrams;
  bool is_carrier; /* not a program's: no agent to ask, and the other ends of its links are strangers */
  _Atomic bool io_uring;
  _Atomic uint32_t max_fd; /* highest tracked descriptor + 1 */
  int table_fd;
  struct bertha_table_header *table;
  struct fd_entry *fds;
  uint64_t netns;
  int64_t spin_ns; /* default bound */
  bool spin_given; /* by BERTHA_SPIN_US */
  char program[64];
  char name[64];
  char agent_path[108];
  char policy[512];
  char connlog[512];
};
extern struct bertha_process bertha;

/* process.c */
void bertha_init(void);
void heap_keeps_large_reads(void);        /* heap.c */
void bertha_read_musts(const char *text); /* in the form of BERTHA_MUST */
bool bertha_table_open(void);
bool bertha_table_anew(void);         /* in a forked child that is to share nothing with its parent */
bool bertha_in_forked_stranger(void); /* in a vfork child, or one that a raw clone made */
void bertha_follow_forks(void);
int bertha_hide_fd(int fd);     /* moves it out of the program's sight; -1 when it cannot */
int bertha_hidden_copy(int fd); /* a duplicate there; -1: no descriptor left */
bool bertha_is_hidden(int fd);
int bertha_unhide(int fd); /* the program wants this very number: moves ours elsewhere */
uint32_t bertha_tid(void);
uint64_t bertha_cookie(int fd);               /* SO_COOKIE; 0: not a socket */
uint64_t conn_cookie(struct conn *c, int fd); /* that of its socket, which stands at `fd` now */
int64_t bertha_now_ns(void);
void bertha_debug(const char *format, ...) __attribute__((format(printf, 1, 2)));
extern int bertha_log_level;

/* lock.c */
bool bertha_lock(_Atomic uint32_t *lock);     /* false: this very thread holds it (a signal handler) */
bool bertha_try_lock(_Atomic uint32_t *lock); /* false: somebody holds it */
void bertha_unlock(_Atomic uint32_t *lock);

/* table.c */
struct conn *conn_new(int fd, enum bertha_conn_kind kind);
void conn_free(struct conn *c);
void conn_free_in(struct bertha_table_header *table, struct conn *c); /* of another family's table */
void conn_track(int fd, struct conn *c);                              /* takes over a reference */
void conn_reach(int fd);                                              /* what is done for all includes it */
void conn_forget(int fd);
void conn_books_begin(void); /* around what changes a descriptor in the books, and in the kernel */
void conn_books_end(void);
/* Around what puts another file behind a connection's descriptors: no other thread is in the middle of such a change meanwhile.
 * False: one takes long over it, and is not waited for. */
bool conn_still_begin(void);
void conn_still_end(bool begun);
void conn_cancel_hold(void); /* the thread is not cancelled until it is released */
void conn_cancel_release(void);
void conn_fork_prepare(void);
void conn_fork_done(bool child);
void conn_fork_begin(void); /* around the C library's fork(); what comes by others has no end that we see */
void conn_fork_end(bool failed);

#define BERTHA_RECORD 512u /* bytes from one connection's record to the next */
extern uint8_t *bertha_records;
static inline struct conn *conn_by_index(uint32_t index) {
  return (struct conn *)(void *)(bertha_records + (size_t)index * BERTHA_RECORD);
}
static inline uint32_t conn_index(const struct conn *c) {
  return (uint32_t)((size_t)((const uint8_t *)c - bertha_records) / BERTHA_RECORD);
}

static inline struct conn *conn_of(int fd) {
  if (UNLIKELY((unsigned)fd >= BERTHA_FDS || bertha.fds == NULL)) {
    return NULL;
  }
  uint32_t i = atomic_load_explicit(&bertha.fds[fd].conn, memory_order_acquire);
  return LIKELY(i == 0) ? NULL : conn_by_index(i - 1);
}
static inline uint32_t conn_kind(const struct conn *c) {
  return atomic_load_explicit(&c->info.kind, memory_order_acquire);
}
static inline uint32_t conn_flags(const struct conn *c) {
  return atomic_load_explicit(&c->flags, memory_order_relaxed);
}
static inline void conn_set_flag(struct conn *c, uint32_t f) {
  if ((conn_flags(c) & f) != f) {
    atomic_fetch_or_explicit(&c->flags, f, memory_order_relaxed);
    if (UNLIKELY(c->home != NULL)) {
      atomic_fetch_or_explicit(&c->home->flags, f, memory_order_relaxed);
    }
  }
}
static inline void conn_clear_flag(struct conn *c, uint32_t f) {
  if (conn_flags(c) & f) {
    atomic_fetch_and_explicit(&c->flags, ~f, memory_order_relaxed);
    if (UNLIKELY(c->home != NULL)) {
      atomic_fetch_and_explicit(&c->home->flags, ~f, memory_order_relaxed);
    }
  }
}
static inline void count_bytes(_Atomic uint64_t *counter, uint64_t n) {
  atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
                        memory_order_relaxed);
}

static inline struct bertha_direction *conn_rx(const struct conn *c) {
  return &c->slot->dir[1 - c->side];
}
static inline struct bertha_direction *conn_tx(const struct conn *c) {
  return &c->slot->dir[c->side];
}

#endif
