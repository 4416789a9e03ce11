/* Datagrams between programs of one host: a UDP socket that was bound to a port, and those that send to it.
 *
 * The sockets stay the kernel's, and so do the descriptors; what passes by memory (box.h) is what the other end is awake
 * for.  A client that finds the socket in the directory takes a slot of a link to it, as for TCP, and leaves a claim
 * with the sum of what it sends next by the kernel; a socket that receives just that from just that address believes
 * the claim.  Decision 0021. */
#ifndef BERTHA_LOCAL_H
#define BERTHA_LOCAL_H

#include <poll.h>
#include <sys/epoll.h>

#include "box.h"
#include "conn.h"
#include "dgram.h"

enum { PAIR_BUCKETS = 256, INLETS = 64, PAIRS_CLIENT = 16, KERNEL_EVERY = 64, SUMS = 64 };
/* The kernel's queue may be empty while something is on its way there, in another processor's hands; not for long. */
#define ON_ITS_WAY_NS 1000000
#define DROPPED_NS 100000000
#define RESCUE_NS INT64_C(10000000)
/* Who sends on does not know whether its reader is gone or waits for a processor; and what is held may be let go, when its program
 * leaves it to a child, say. */
#define RESCUE_LATE_NS INT64_C(100000000)
#define MANY ((uint64_t)1 << 30) /* more than a kernel's queue can have */

struct pair { /* of two sockets, at this end */
  /* Who looks without the lock may come upon one that has been given back: it has these of some pair, always. */
  struct link *link;
  struct box *in, *out;
  struct pair *next;    /* in its bucket; from here on it is made anew */
  struct pair *sibling; /* all of the socket */
  struct pair *next_hot;
  uint32_t slot;
  uint32_t use;
  bool tied;
  bool opened;     /* nothing of before the tie can be in the kernel any more */
  int64_t since;   /* when it was tied, or first seen to be behind (local_sleep.c) */
  bool hot;        /* the other end may put datagrams into our box */
  bool heard;      /* client: what comes from there by the kernel has that address */
  bool vague;      /* MANY more have been counted than it has sent: silence has to tell */
  bool ended;      /* only what lies in its box is yet to be read */
  uint32_t missed; /* sent by the kernel although it is tied */
  uint32_t quiet;  /* sleeps since it was last heard of */
  uint32_t head, tail;
  int64_t
      put_at; /* when the oldest that is unread was put into the other's box, or one that came soon after it */
  uint32_t put_tail; /* and what `tail` was then */
  uint8_t addr[16];
  uint16_t port;
  uint32_t scope;
};

struct inlet {        /* a link of a socket that was bound, by which several come */
  struct link *link;  /* NULL: not in use */
  unsigned words;     /* of the map, as far as there are pairs */
  unsigned next_slot; /* who is read next, if there is something of him */
  uint64_t pending[BERTHA_LINK_SLOTS / 64];
  struct pair *pair[BERTHA_LINK_SLOTS];
  struct inlet *next; /* among those that nobody uses */
};

struct watched { /* by an epoll set; the kernel knows it as well */
  int epfd;      /* -1: none */
  uint32_t events;
  uint64_t data;
  bool
      waited; /* its thread has waited there since the socket was put there: nobody sleeps who does not know of it */
};

struct local {
  _Atomic uint32_t lock; /* also of who comes too late, and finds another life: it is not made anew */
  struct conn *c;
  int fd;
  int pid;
  uint32_t owner; /* the thread that receives; 0: none yet */
  bool server;
  bool kernel_only; /* nothing is taken from boxes but what lies there */
  bool leaving;     /* its descriptor is out of the books, and still open */
  bool tried;       /* client: the destination sent to last is nobody's */
  uint8_t tried_addr[16];
  uint16_t tried_port;
  /* client: of all that it has sent by the kernel and not to somebody who is tied */
  uint32_t sums[SUMS];
  unsigned sum_count;
  bool vague;                        /* something else was sent, whose sum nobody has */
  uint32_t blocked;                  /* sends that wait for space, without the lock */
  bool shared;                       /* another process, or by a duplicate, may have sent as well */
  struct pair *bucket[PAIR_BUCKETS]; /* by port: what goes to one address may come to another one's socket */
  struct pair *pairs;
  struct pair *hot;
  unsigned pair_count;
  struct inlet *inlet[INLETS];
  unsigned inlet_count;
  unsigned turn;
  unsigned next_read; /* which inlet, or which pair of a client, is read next */
  enum {
    LOOKED_NOWHERE = 0,
    LOOKED_IN_BOX,
    LOOKED_IN_KERNEL
  } looked; /* what the program has looked at is next */
  const struct pair *looked_at;
  /* The thread that receives: it looks neither at its boxes nor after what others leave unread.  How often: a signal handler
   * that interrupts its sleep may sleep there, too, and when it is done, the thread sleeps on. */
  uint32_t asleep;
  bool claiming;  /* a thread asks the agent for a link */
  bool corked;    /* MSG_MORE: the kernel has the beginning of a datagram */
  uint32_t takes; /* since the kernel was last looked at; KERNEL_EVERY: it is its turn */
  struct watched watched;
  struct watched
      outer;     /* another set or number by which that set is waited for, as long as something lies here */
  int64_t asked; /* when poll or epoll last asked the kernel, too */
  int64_t empty; /* when the kernel last had nothing; 0: not known */
  uint32_t empty_stir;
  /* A set that tells of edges has told of this; seen again before a receive, it is of a program that leaves things unread. */
  const struct pair *edge_pair;
  uint32_t edge_head;
  bool edge_over;             /* the kernel tells of its edges from here on */
  _Atomic uint32_t life;      /* another one for each socket that has this record */
  struct local *_Atomic next; /* all of this process */
  struct local *next_spare;
};

/* A socket that others may send to, which has a listener and no chunnels; and one that sends there. */
void local_serve(int fd, int family, struct listener *l);
void local_dial(int fd, int family, const uint8_t addr[16], uint16_t port, bool first);
struct local *local_first(void);
struct local *local_of(const struct conn *c); /* NULL: another process's */
struct local *local_mine(struct conn *c,
                         int fd);               /* the same, or taken over from a parent that has closed it */
void local_option(int fd, int level, int name); /* the program has set it */
void local_never(int fd, bool never);           /* it has an option that only the kernel serves; or a set is
                                                 * watched from outside */
bool local_is_never(int fd);
void local_keep_out(struct local *d);    /* from here on the kernel alone */
void local_cool(struct local *d);        /* until something comes by the kernel */
void local_kernels(struct conn *c);      /* the same, of a connection that may be one */
void local_reconnecting(struct conn *c); /* before and after connect() */
void local_reconnected(struct conn *c);
/* The lock of what `c` was with that life; false: it is not held, another thread has closed it meanwhile. */
bool local_lock_again(struct local *d, const struct conn *c, uint32_t life);
void local_closing(struct conn *c, int fd); /* the last descriptor, of all processes; -1: closed already */
void local_forgotten(struct conn *c, int fd, bool open); /* one of this process, others have it still */
void local_after_fork(void);
void local_leave(void);      /* the program is executed: as before, and from here on by the kernel alone */
void local_fork_begin(void); /* what others have not read goes by the kernel */
void local_forked(void);     /* in the parent: the child may send, and be gone before anybody looks */

/* local_io.c */
ssize_t local_recv(struct conn *c, int fd, struct msghdr *msg, int flags);
ssize_t local_send(struct conn *c, int fd, const struct msghdr *msg, int flags);
int local_unread(struct conn *c, int fd);
/* The kernel has an error that the next receive would take from it. */
bool local_error_is_next(struct conn *c, int fd);

/* local_count.c */
/* Around a send by the kernel, with the lock; `msg` NULL: its sum is not known, and `vague` says so. */
void local_begin_send(struct local *d, struct pair *p, uint16_t port, const struct msghdr *msg);
void local_end_send(struct local *d, struct pair *p, uint16_t port);
void local_look_who_shares(struct local *d);
/* Whoever else has the socket sends what nobody here counts: when it is ours alone again, MANY make up for it. */
static inline bool local_is_shared(struct local *d) {
  if (LIKELY(atomic_load_explicit(&d->c->info.refs, memory_order_relaxed) == 1 && !d->shared)) {
    return false;
  }
  local_look_who_shares(d);
  return true;
}
/* Without going round: a length that the kernel does not accept (EINVAL) is too much for a box. */
static inline size_t local_bytes(const struct msghdr *msg) {
  size_t n = 0;
  for (size_t i = 0; i < msg->msg_iovlen; i++) {
    size_t part = msg->msg_iov[i].iov_len;
    n = part <= SIZE_MAX - n ? n + part : SIZE_MAX;
  }
  return n;
}

/* local_pairs.c */
void pair_drop(struct local *d, struct pair *p);
void pair_end(struct local *d, struct pair *p); /* the same, when what lies in its box has been read */
void inlet_give(struct inlet *in);
void pairs_after_fork(void);
struct pair *local_pair(const struct local *d, const uint8_t addr[16], uint16_t port);
/* Without the lock: the agent may be asked. */
void local_claim(struct local *d, int fd, const uint8_t addr[16], uint16_t port, uint32_t scope);
bool local_stale(struct local *d, struct pair *p, int fd); /* its server has left it, or is another one now */
bool local_client_tied(struct pair *p);
/* Came by the kernel, from there.  False: from somebody who may have left a claim; then local_meet() is due, without the lock. */
bool local_heard(struct local *d, const uint8_t addr[16], uint16_t port);
void local_meet(struct local *d, const uint8_t addr[16], uint16_t port, uint32_t scope,
                const struct msghdr *msg, size_t size);
bool local_ready(struct local *d);
bool local_tell(struct local *d); /* the same, and so it remains until the program has received something */
const struct pair *local_next(struct local *d); /* with something to take; NULL: none */
bool local_alone(struct local *d);              /* one process, one descriptor, and this thread */
void local_heat(struct local *d, struct pair *p);
bool local_fall_asleep(struct local *d); /* false: there is something to take */
void local_awake(struct local *d);
int64_t
local_waits_for_readers(struct local *d); /* no longer than that, then it is due to look; 0: for nobody */
void local_rescue(struct local *d,
                  bool at_once); /* what lies unread in others' boxes for long goes by the kernel */
void local_take_back(struct local *d, struct pair *p); /* all that is unread there */
int64_t local_spin_bound(const struct local *d);

/* local_sets.c */
enum { LOCAL_IN = POLLIN | POLLRDNORM };
void local_registered(int epfd, int op, int fd, const struct epoll_event *event);
void local_unregister(struct local *d); /* it is being closed */
void local_set_created(int epfd);
/* From here on there are others than who waits in it: poll, select, another set, or another number of it. */
void local_set_watched(int epfd);
/* And what lies in its boxes already is told of there, with that event; NULL: with each member's own. */
void local_set_within(int epfd, int outer, const struct epoll_event *event);
bool local_in_sets(void);
void local_keep_members_out(int epfd);
/* Something lies in its boxes: from before its set was watched from outside.  NULL: in none's. */
struct local *local_ready_member(int epfd);
extern _Atomic bool local_any_outer; /* some set is, or was, looked after by another one (local_set_within) */

/* local_wait.c */
#define LOCAL_EMPTY_NS 20000
void local_kernel_empty(struct local *d);
bool local_kernel_is_empty(const struct local *d); /* as far as can be known without asking it again */
bool local_polled(const struct pollfd *fds, nfds_t count);
typedef int local_epoll_wait(int epfd, struct epoll_event *events, int max, int64_t timeout_ns,
                             const sigset_t *mask);
/* As epoll_wait(2) and poll(2), with -errno; `wait`: for all that is not ours. */
int local_epoll(int epfd, struct epoll_event *events, int max, int64_t timeout_ns, const sigset_t *mask,
                local_epoll_wait *wait);
int local_poll(struct pollfd *fds, nfds_t count, int64_t timeout_ns, const sigset_t *mask);

#endif
