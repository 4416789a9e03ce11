/* A program's epoll set, as far as connections on rings are in it.
 *
 * The kernel's set stays and holds every descriptor.  A connection on a ring is in it once and for all with
 * EPOLLIN | EPOLLRDHUP | EPOLLET (the kernel's half: end, reset, bell byte), while what the program asked for
 * is kept here: epoll_ctl on it then costs no system call, and epoll_wait finds its events in the link's map
 * of changed slots. */
#ifndef BERTHA_ESET_H
#define BERTHA_ESET_H

#include "shim.h"
#include "wait.h"

#define ESET_FDS 65536
#define INNER_MOST 64
#define ESET_WORDS (BERTHA_LINK_SLOTS / 64)

enum reg_state {
  REG_NONE = 0,
  REG_KERNEL = 1, /* the kernel serves it, with the program's own events */
  REG_RING = 2,
  REG_OFF = 3,  /* removed by the program, still in the kernel's set (until it closes the descriptor) */
  REG_SET = 5,  /* a set itself, whose rings are looked at, too (eset_nest.c) */
  REG_GONE = 4, /* closed while the kernel served it; a duplicate may keep it in the set (epoll(7), Q6) */
};

struct reg {
  uint64_t data;
  uint32_t events;
  uint32_t conn; /* index + 1 */
  struct slink *slink;
  uint32_t next_upgrade; /* fd + 1 */
  uint8_t state;
  uint8_t queued;    /* among the set's `upgrades`; atomically */
  uint8_t stays : 1; /* the kernel's for good: it would be one too many for the rings */
  uint8_t
      fired : 1; /* EPOLLONESHOT in the kernel's keeping: gone off, and some thread's until its next epoll_ctl */
  uint8_t
      lent : 1; /* asked of the kernel as writable, too, because nothing else tells it that the ring has data */
  uint8_t
      held : 1; /* EPOLLET: not asked of the kernel as writable, of which it would tell again, until room is lacking */
  uint8_t kernel_out : 1; /* on a ring, but its output is the kernel's: asked of the kernel, too */
  uint8_t first;          /* the kernel's first edge of our registration is yet to come */
  uint8_t fresh : 1;      /* EPOLLET: there is something to be told of since the program was last told */
  uint32_t ready;         /* what holds of what it was, or is about to be, told of */
  uint64_t tail;          /* EPOLLET: how far the other end had written when that was last looked at */
  uint32_t wanted;        /* and the connection's room_wanted */
  uint32_t shuts;         /* and `shuts` */
  uint64_t taken;         /* and how much we had read */
  struct eset *inner;     /* REG_SET */
  uint32_t seen;          /* and its `news` when it was last looked at */
  uint8_t just;           /* and told of in this call, because of the kernel */
  uint32_t ends;          /* and what the connection had of an end (enum conn_flag) */
  uint8_t use; /* how often the number was added: an event fetched before may be of an earlier one */
};

struct slink { /* a link, as far as this set has connections of it */
  struct link *link;
  struct eset *set;
  struct slink *beside; /* the same link's, of another set */
  uint32_t sleeper;
  uint32_t parents; /* in a child: the one that its parent has for this set */
  uint32_t count;
  uint32_t
      words; /* so many of each map's words may have members, 0: there are none; slots are taken from the first on */
  uint32_t busy;   /* the set's `turns` when something was last found here */
  unsigned cursor; /* behind the slot last told of */
  uint64_t mask[ESET_WORDS];
  uint64_t pending[ESET_WORDS];
  uint64_t in[ESET_WORDS];             /* also those that have fired; with the link's `sets_lock` */
  uint64_t byte_left[ESET_WORDS];      /* a bell byte was left for other sets */
  _Atomic uint64_t parted[ESET_WORDS]; /* out of the set, but named in the slot (eset_parted.c) */
  _Atomic uint64_t told[ESET_WORDS];   /* changes that another set has taken from the link's map */
  int fd[BERTHA_LINK_SLOTS];
  struct slink *next;
  bool warm; /* it has had something lately */
  struct slink *next_warm;
};

struct eset {
  int epfd;
  uint32_t index; /* among the sets */
  int pid;
  _Atomic uint32_t lock;
  bool plain;           /* watched from outside: everything stays with the kernel */
  bool inherited;       /* across a fork, and not yet used by the child */
  bool adopted;         /* and used since: the parent may have the kernel's set still */
  bool starved;         /* somebody waits for space in a ring */
  _Atomic bool sharing; /* one of its connections is, or was, in another set, too */
  bool byte_left; /* a bell byte could not be taken off: no further one would come, so an eventfd has to do */
  _Atomic uint32_t ring_count;
  uint32_t parted;         /* members that are out of it, and named in their slots */
  uint32_t kernel_streams; /* REG_KERNEL registrations */
  _Atomic uint32_t
      borrowed; /* of those on rings, whose TCP sockets are in the kernel's set, too (borrow.h) */
  _Atomic uint32_t upgrades; /* list of fd + 1; others put theirs there without the lock */
  uint32_t bell;
  int bell_fd;
  uint32_t sleeps;
  _Atomic uint32_t asleep; /* threads in the kernel's wait just now */
  struct spinner spin;
  uint32_t turns;       /* waits */
  int64_t kernel_seen;  /* when the kernel was last asked */
  int64_t kernel_every; /* and when it is to be asked again */
  bool rings_turn;      /* with room for one event, and the kernel due */
  struct slink *slinks;
  struct slink *warm; /* those among them that are looked at in each wait (eset_look.c) */
  uint32_t slink_count;
  int64_t all_seen; /* when all of them were */
  struct reg *regs;
  bool kin;                /* other processes of the family wait in it, too (eset_kin.c) */
  uint32_t kin_seen;       /* the family's adoptions when that was last looked at */
  uint32_t deep;           /* of those asleep, the threads that did not know */
  uint32_t kicked;         /* fd + 1 of a member by which one of them wakes another */
  int64_t kick_until;      /* 0: not, or no more */
  uint32_t life;           /* another one for each set that has this record */
  uint32_t news;           /* how often something was found to have changed */
  _Atomic uint32_t outers; /* sets that look at the rings of this one, too */
  uint32_t asleep_outside; /* of those asleep, the threads that sleep in such a set */
  unsigned inner_count;    /* sets within this one, whose rings are looked at */
  uint32_t inner_turn;
  int inner_fd[INNER_MOST];
};

/* The upper half of the data of our own registrations in the program's kernel set; random, per process. */
extern uint64_t eset_magic;
#define ESET_BELL 0xffffffffu
#define ESET_MAGIC_BITS 0xfffffffe00000000u /* of those of the magic, the lowest says: */
#define ESET_BORROWED 0x0000000100000000u   /* it is of a TCP socket that was borrowed (borrow.h) */

struct eset *eset_of(int epfd);
struct eset *eset_with(int fd); /* the one set that has it; NULL: none, or several */
bool eset_serves(int epfd,
                 int fd);      /* or has served: the kernel alone does not say what is asked of it there */
uint32_t eset_entry(int fd);   /* 0: no epoll descriptor that we know of, and no member of a set */
void eset_created(int epfd);   /* by this process, just now; -1: not after all */
void eset_find_existing(void); /* those made before we were there */
/* As above, for a wait that may sleep: another thread may add a member of ours meanwhile. */
struct eset *eset_to_sleep_in(int epfd);
int eset_ctl(int epfd, int op, int fd, struct epoll_event *event); /* 0 or -errno */
int eset_wait(struct eset *s, struct epoll_event *events, int max, int64_t timeout_ns, const sigset_t *mask);
void eset_forget(int fd); /* the program closes this descriptor: a member, or a set */
void eset_dup(int from, int to);
void eset_swap(int fd, bool begin);
bool eset_wants_upgrade(struct conn *c, int fd);
bool eset_kernel_for_good(const struct conn *c,
                          int fd); /* a registration of its will not come to the rings */
/* What it has sent was cut short, and the kernel carries it: who waits for room is told by the kernel.  `anew`: it has room. */
void eset_lacks_room(const struct conn *c, int fd, bool anew);
void eset_shut(struct conn *c, int fd); /* by us */
void eset_polled(int fd); /* the program waits for this descriptor by poll, select or another set */
void eset_after_fork(void);
void eset_fd_moved(int from, int to);

/* between eset.c and eset_wait.c, with the lock held */
void eset_upgrade_queued(struct eset *s);
void eset_pass_on(struct eset *s);
void eset_pass_on_own(struct eset *s); /* not of the sets within it, whose locks it would need */
void nest_after_fork(void);
void eset_adopt(struct eset *s);
static inline uint64_t reg_data(const struct reg *r, int fd) {
  return eset_magic | (uint32_t)r->use << 16 | (uint32_t)fd;
}
static inline uint64_t eset_borrowed_data(const struct reg *r, int fd) {
  return reg_data(r, fd) | ESET_BORROWED;
}
void eset_told(struct eset *s); /* without the lock: a member has something, and threads sleep in the set */
uint32_t eset_sticky(uint32_t events); /* what the kernel is asked of a connection on a ring */

/* eset_nest.c: a set within a set. */
/* An epoll_ctl about an epoll descriptor; false: it is to go the kernel's way. */
bool nest_ctl(int epfd, int op, int fd, struct epoll_event *event, int *result);
void nest_drop(struct eset *s, int fd); /* with the lock held: no longer a member */
void nest_drop_all(struct eset *s);     /* the same for all */
void nest_give(struct eset *s, int fd); /* the kernel is to know it as the program does */
void eset_plain(struct eset *s); /* its members go back to the kernel, those of its inner sets as well */

/* eset_share.c: a connection in several sets, with the lock of the set that the slink is of. */
void share_enlist(struct slink *k);
bool share_unlist(struct slink *k); /* false: it has to stay, a handler has interrupted who looks at it */
bool share_join(struct slink *k, uint32_t slot, bool exclusive); /* false: it cannot be in this one as well */
void share_leave(struct slink *k, uint32_t slot);
/* Another process of the family may have put its name in the place of ours: taken back, unless it sleeps under it just now. */
void share_again(struct slink *k, uint32_t slot, bool exclusive, bool from_the_dead);
void share_renamed(const struct slink *k, uint32_t slot, uint32_t was); /* k->sleeper is another one now */
uint64_t share_take(struct slink *k, unsigned word);                    /* what has changed for this set */
bool share_byte_left(struct slink *k); /* a byte lies there that keeps others from being sent */

static inline bool share_parted(const struct slink *k, uint32_t slot) {
  return atomic_load_explicit(&k->parted[slot / 64], memory_order_relaxed) >> (slot % 64) & 1;
}

/* eset_parted.c: members that the program has taken out, with the lock of the set that the slink is of. */
void parted_begin(struct slink *k, const struct conn *c, bool exclusive); /* instead of share_leave() */
bool parted_again(struct slink *k, uint32_t slot, bool exclusive);        /* true: as good as share_join() */
void parted_end(struct slink *k, uint32_t slot);   /* share_leave(), if that is yet to be done */
void parted_joins(struct slink *k, uint32_t slot); /* named anew */
void parted_all_end(struct eset *s);
void parted_after_fork(struct eset *s);

/* By memory alone, and perhaps too much. */
static inline bool slink_changed(const struct slink *k, unsigned word) {
  const struct link *l = k->link;
  uint64_t dirty = atomic_load_explicit(&l->dirty[l->side][word], memory_order_acquire);
  return ((dirty | atomic_load_explicit(&k->told[word], memory_order_acquire)) & k->mask[word]) != 0;
}

static inline void slink_warm(struct slink *k) {
  if (UNLIKELY(!k->warm)) {
    k->warm = true;
    k->busy = k->set->turns;
    k->next_warm = k->set->warm;
    k->set->warm = k;
  }
}

/* It is looked at; whether there is something to be told of, the look says. */
static inline void slink_look(struct slink *l, uint32_t slot) {
  l->set->news++;
  slink_warm(l);
  l->pending[slot / 64] |= (uint64_t)1 << (slot % 64);
}

/* It is told of, whatever was told before. */
static inline void slink_mark(struct slink *l, uint32_t slot) {
  l->set->regs[l->fd[slot]].fresh = 1;
  slink_look(l, slot);
}

#endif
