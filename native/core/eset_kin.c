/* A set that several processes of a family wait in, after a fork.
 *
 * They have one kernel set, one map of changed slots for each link, and one name in each slot, and whoever looks first takes
 * what is there: the bit of a change, and the edge of a bell that was rung for another one.  So each of them sleeps for a
 * bounded time (KIN_NS) and looks at all its members then.  What makes it fast all the same is the name: who is about to
 * sleep puts its own there, unless another one sleeps under the name that it finds.
 *
 * The family's table says which processes use which set; its count of adoptions is all that the others ever look at.  A
 * parent that sleeps without a bound when its child comes is woken through the kernel's set: the child makes one member
 * readable for everybody (its own half is writable, level-triggered), which the child cannot take away from it, until the
 * parent has said that it knows.  Meanwhile the child cannot sleep in the kernel's set, and looks at it now and then. */
#include <stdatomic.h>

#include "conn.h"
#include "eset_members.h"
#include "eset_wait.h"
#include "orphans.h"

#define KIN_NS INT64_C(4000000)
#define KICKED_NS INT64_C(1000000)
#define KICK_NS INT64_C(100000000) /* who is not asleep has no need to be woken */
enum { USERS = 48, SETS_BITS = 12 };
#define KNOWS (UINT64_C(1) << 31)
#define NAME_BITS (KNOWS - 1)

struct kin {
  _Atomic uint32_t adoptions;
  _Atomic uint32_t full;          /* there have been more users than places */
  _Atomic uint64_t users[USERS];  /* pid << 32 | KNOWS | which of its sets */
  _Atomic uint32_t kicked[USERS]; /* fd + 1 of the member by which that one wakes its parent */
};

/* In the table's first page, behind what readers know. */
enum { FAMILY_AT = 3072 };
_Static_assert(FAMILY_AT + sizeof(struct kin) <= 4096, "the records begin there");

static struct kin *family(void) {
  return (struct kin *)(void *)((uint8_t *)bertha.table + FAMILY_AT);
}

/* Parent and child have a set that they share at the same place, in the same life. */
static uint64_t name_of(const struct eset *s) {
  return ((uint64_t)s->life << SETS_BITS | s->index) & NAME_BITS;
}

static uint32_t pid_in(uint64_t user) {
  return (uint32_t)(user >> 32);
}

static uint64_t user_of(uint32_t pid, const struct eset *s) {
  return (uint64_t)pid << 32 | name_of(s);
}

/* 0: it has closed the set, and left what it had begun. */
static bool gone(uint32_t pid) {
  return pid == 0 || orphans_gone(pid);
}

static int place_of(uint64_t user) {
  struct kin *f = family();
  for (int i = 0; i < USERS; i++) {
    if ((atomic_load(&f->users[i]) & ~KNOWS) == (user & ~KNOWS)) {
      return i;
    }
  }
  return -1;
}

/* False: it was there. */
static bool enter_user(uint64_t user) {
  struct kin *f = family();
  if (place_of(user) >= 0) {
    return false;
  }
  for (uint32_t round = 0; round < 2; round++) {
    for (uint32_t i = 0; i < USERS; i++) {
      uint64_t before = atomic_load(&f->users[i]);
      bool takeable = before == 0 || (round == 1 && gone(pid_in(before)));
      if (takeable && atomic_compare_exchange_strong(&f->users[i], &before, user)) {
        atomic_store(&f->kicked[i], 0);
        return true;
      }
    }
  }
  atomic_store(&f->full, 1);
  return true;
}

static void forget_user(uint64_t user) {
  int i = place_of(user);
  if (i >= 0) {
    uint64_t before = atomic_load(&family()->users[i]);
    if ((before & ~KNOWS) == user) {
      atomic_compare_exchange_strong(&family()->users[i], &before, 0);
    }
  }
}

uint32_t kin_adoptions(void) {
  return bertha.table_ready ? atomic_load(&family()->adoptions) : 0;
}

/* ---- the parent ---------------------------------------------------------------------------------- */

static const struct bertha_sleeper *parents(const struct slink *k) {
  return &k->link->sleepers[k->link->side][k->parents < BERTHA_SLEEPERS ? k->parents : 0];
}

/* It has not closed the set, as far as we can see. */
static bool parent_has(const struct eset *s, uint32_t pid) {
  for (const struct slink *k = s->slinks; k != NULL; k = k->next) {
    if (k->parents != 0 && atomic_load(&parents(k)->owner) == pid) {
      return true;
    }
  }
  return false;
}

static bool parent_armed(const struct eset *s) {
  for (const struct slink *k = s->slinks; k != NULL; k = k->next) {
    if (k->parents != 0 && atomic_load(&parents(k)->armed) != 0) {
      return true;
    }
  }
  return false;
}

static bool ask(struct eset *s, int fd, uint32_t events) {
  struct epoll_event e = {.events = events, .data.u64 = reg_data(&s->regs[fd], fd)};
  return REAL(epoll_ctl)(s->epfd, EPOLL_CTL_MOD, fd, &e) == 0;
}

static bool may_be_kicked(const struct eset *s, int fd) {
  const struct reg *r = &s->regs[fd];
  return (r->state == REG_RING || r->state == REG_OFF) && !r->kernel_out;
}

static bool kick_by(struct eset *s, int fd) {
  return may_be_kicked(s, fd) &&
         ask(s, fd, (eset_sticky(s->regs[fd].events) & ~(uint32_t)EPOLLET) | EPOLLOUT);
}

/* False: it is not ours any more, or has left the rings, and what the kernel is asked of it is another thing. */
static bool unkick(struct eset *s, uint32_t kicked) {
  int fd = (int)((kicked - 1) & (ESET_FDS - 1));
  bool can = may_be_kicked(s, fd) && ask(s, fd, eset_sticky(s->regs[fd].events));
  s->regs[fd].first |= can;
  return can;
}

/* It is known before it is there, and known no more before it goes (no_more_kicks): so none stays that nobody knows of. */
static bool kick_known(struct eset *s, _Atomic uint32_t *known, int fd) {
  bool done = kick_by(s, fd);
  if (done && atomic_load(known) != (uint32_t)fd + 1) {
    unkick(s, (uint32_t)fd + 1);
  }
  return done;
}

static void kick(struct eset *s, _Atomic uint32_t *known) {
  for (const struct slink *k = s->slinks; k != NULL; k = k->next) {
    for (uint32_t slot = 0; k->count > 0 && slot < k->link->slot_count; slot++) {
      int fd = k->fd[slot];
      if (!(k->in[slot / 64] >> (slot % 64) & 1) || !may_be_kicked(s, fd)) {
        continue;
      }
      atomic_store(known, (uint32_t)fd + 1);
      if (kick_known(s, known, fd)) {
        s->kicked = (uint32_t)fd + 1;
        return;
      }
      atomic_store(known, 0);
    }
  }
}

static void take_kick_back(struct eset *s, int place) {
  uint32_t kicked = atomic_exchange(&family()->kicked[place], 0);
  if (kicked != 0) {
    unkick(s, kicked);
  }
}

static void kick_as_needed(struct eset *s, bool needed) {
  int mine = place_of(user_of((uint32_t)bertha.pid, s));
  needed = needed && mine >= 0 && (bertha_now_ns() < s->kick_until || parent_armed(s));
  if (!needed) {
    s->kick_until = 0;
  }
  if (mine < 0) {
    return;
  }
  _Atomic uint32_t *known = &family()->kicked[mine];
  uint32_t kicked = atomic_load(known);
  if (kicked != 0 && (!needed || !may_be_kicked(s, (int)kicked - 1))) {
    take_kick_back(s, mine);
    kicked = 0;
  }
  if (needed && kicked == 0) {
    kick(s, known);
  } else if (kicked != 0) {
    s->kicked = kicked;
  }
}

/* ---- all of them --------------------------------------------------------------------------------- */

/* The order counts: who finds itself alone takes its own entry back, and looks at the count of adoptions after that. */
static void adopted(struct eset *s, uint32_t parent) {
  struct kin *f = family();
  enter_user(user_of((uint32_t)bertha.pid, s) | KNOWS);
  atomic_fetch_add(&f->adoptions, 1);
  if (enter_user(user_of(parent, s))) {
    atomic_fetch_add(&f->adoptions, 1);
  }
  if (!parent_has(s, parent)) {
    forget_user(user_of(parent, s));
  }
  s->kin = true;
  s->kick_until = bertha_now_ns() + KICK_NS;
  int place = place_of(user_of(parent, s));
  kick_as_needed(s, place >= 0 && !(atomic_load(&f->users[place]) & KNOWS));
}

void kin_adopt(struct eset *s, uint32_t parent) {
  bool members = false;
  s->kin = false;
  s->kin_seen = kin_adoptions();
  s->kicked = 0;
  s->kick_until = 0;
  s->deep = 0;
  for (struct slink *k = s->slinks; k != NULL; k = k->next) {
    k->parents = k->sleeper;
    members |= k->count > 0;
  }
  if (members && bertha.table_ready && !orphans_gone(parent) && parent_has(s, parent)) {
    adopted(s, parent);
  }
}

void kin_forget(struct eset *s) {
  if (kin_adoptions() != 0) {
    uint64_t me = user_of((uint32_t)bertha.pid, s);
    int mine = place_of(me);
    if (mine >= 0 && atomic_load(&family()->kicked[mine]) != 0) { /* whoever is woken by it takes it back */
      atomic_store(&family()->users[mine], name_of(s) | KNOWS);
    } else {
      forget_user(me);
    }
  }
  s->kin = false;
  s->kicked = 0;
  s->kick_until = 0;
  s->deep = 0;
}

/* Everything is to be looked at, whoever took what told of it. */
static void look_at_all(struct eset *s) {
  for (struct slink *k = s->slinks; k != NULL; k = k->next) {
    for (unsigned i = 0; k->count > 0 && i < ESET_WORDS; i++) {
      k->pending[i] |= k->mask[i];
      for (uint64_t todo = atomic_load(&s->outers) != 0 ? k->mask[i] : 0; todo != 0; todo &= todo - 1) {
        const struct reg *r = &s->regs[k->fd[i * 64 + (unsigned)__builtin_ctzll(todo)]];
        s->news += atomic_load(&conn_rx(conn_by_index(r->conn - 1))->tail) != r->tail;
      }
    }
  }
}

static void take_names(struct eset *s, bool from_the_dead) {
  for (struct slink *k = s->slinks; k != NULL; k = k->next) {
    for (uint32_t slot = 0; k->count > 0 && slot < k->link->slot_count; slot++) {
      if (k->in[slot / 64] >> (slot % 64) & 1) {
        share_again(k, slot, s->regs[k->fd[slot]].events & EPOLLEXCLUSIVE, from_the_dead);
      }
    }
  }
}

struct others {
  unsigned count;
  bool unaware;
  bool died;
  bool died_kicking;
};

static struct others others_of(struct eset *s) {
  struct kin *f = family();
  struct others o = {0};
  for (uint32_t i = 0; i < USERS; i++) {
    uint64_t user = atomic_load(&f->users[i]);
    uint32_t kicked = atomic_load(&f->kicked[i]);
    if (user == 0 || (user & NAME_BITS) != name_of(s) || pid_in(user) == (uint32_t)bertha.pid) {
      continue;
    }
    if (!gone(pid_in(user))) {
      o.count++;
      o.unaware |= !(user & KNOWS);
      s->kicked = kicked != 0 ? kicked : s->kicked;
      continue;
    }
    o.died = true;
    o.died_kicking |= kicked != 0;
    take_kick_back(s, (int)i);
    atomic_compare_exchange_strong(&f->users[i], &user, 0);
  }
  return o;
}

/* All know by now: nobody is to be woken any more.  Who has done it may be elsewhere. */
static void no_more_kicks(struct eset *s) {
  struct kin *f = family();
  s->kicked = 0;
  for (int i = 0; i < USERS; i++) {
    uint64_t user = atomic_load(&f->users[i]);
    uint32_t kicked = user != 0 && (user & NAME_BITS) == name_of(s) ? atomic_load(&f->kicked[i]) : 0;
    if (kicked != 0 && may_be_kicked(s, (int)kicked - 1)) {
      take_kick_back(s, i);
    } else if (kicked != 0) {
      s->kicked = kicked;
    }
  }
}

/* One that nobody has begun, as far as is known: it would wake us all the time. */
void kin_kicked(struct eset *s, int fd) {
  if (s->kicked == 0 && s->deep == 0 && kin_adoptions() != 0 && !kin_news(s)) {
    unkick(s, (uint32_t)fd + 1);
  }
}

/* Who else waits in it just now.  That we know is said when nobody sleeps here who does not (`deep`). */
void kin_look(struct eset *s) {
  struct kin *f = family();
  uint64_t me = user_of((uint32_t)bertha.pid, s);
  struct others o;
  bool known;
  parted_all_end(s);
  do {
    s->kin_seen = atomic_load(&f->adoptions);
    s->kicked = 0;
    o = others_of(s);
    int mine = place_of(me);
    known = mine >= 0 && s->deep == 0;
    s->kin = (mine >= 0 && o.count > 0) || atomic_load(&f->full) != 0;
    if (s->kin && known) {
      atomic_fetch_or(&f->users[mine], KNOWS);
    } else if (!s->kin && mine >= 0) {
      take_kick_back(s, mine);
      forget_user(me);
    }
    atomic_thread_fence(memory_order_seq_cst);
  } while (s->kin_seen != atomic_load(&f->adoptions));
  if (o.died_kicking && o.unaware) {
    s->kick_until = bertha_now_ns() + KICK_NS;
  }
  kick_as_needed(s, s->kick_until != 0 && o.unaware);
  if (UNLIKELY(s->kicked != 0) && known && !o.unaware) {
    no_more_kicks(s);
  }
  take_names(s, o.died || !s->kin);
  look_at_all(s);
}

static _Atomic uint32_t *known_of(const struct eset *s, uint32_t kicked) {
  struct kin *f = family();
  for (uint32_t i = 0; i < USERS; i++) {
    uint64_t user = atomic_load(&f->users[i]);
    if (user != 0 && (user & NAME_BITS) == name_of(s) && atomic_load(&f->kicked[i]) == kicked) {
      return &f->kicked[i];
    }
  }
  return NULL;
}

/* For who watches the set: it is readable, and not by a kick alone, which is for another one. */
bool kin_readable(struct eset *s) {
  struct pollfd p = {.fd = s->epfd, .events = POLLIN};
  _Atomic uint32_t *known = UNLIKELY(s->kicked != 0) ? known_of(s, s->kicked) : NULL;
  bool off = known != NULL && unkick(s, s->kicked);
  bool readable = QUIET(poll)(&p, 1, 0) > 0;
  if (off) {
    kick_known(s, known, (int)s->kicked - 1);
  }
  return readable;
}

int64_t kin_sleep_cap(const struct eset *s, int64_t cap) {
  return s->kin && (cap < 0 || cap > KIN_NS) ? KIN_NS : cap;
}

int kin_sleep(const struct eset *s, struct epoll_event *events, int max, int64_t ns, const sigset_t *mask,
              void (*undo)(void *), void *arg) {
  struct timespec t = {0, ns < 0 || ns > KICKED_NS ? KICKED_NS : ns};
  int n = sleep_ppoll(NULL, 0, &t, mask, undo, arg);
  n = n >= 0 ? QUIET(epoll_look)(s->epfd, events, max) : n;
  return n >= 0 ? n : -errno;
}
