/* Who sleeps in an epoll set, and by what it is woken. */
#include "agentc.h"
#include "conn.h"
#include "eset_wait.h"

enum { BELL_AFTER = 16, NO_BELL_MS = 1, STARVED_MS = 20 };

void eset_want_bell(struct eset *s) {
  bool now = s->starved || s->byte_left || atomic_load(&s->sharing) || atomic_load(&s->asleep) != 0;
  if (s->bell != 0 || (!now && ++s->sleeps % BELL_AFTER != 0)) {
    return;
  }
  int fd;
  uint32_t bell = bell_create(&fd);
  if (bell == 0) {
    return;
  }
  /* edge-triggered and never read: every ring is an event, and costs its sleeper no further call */
  struct epoll_event e = {.events = EPOLLIN | EPOLLET, .data.u64 = eset_magic | ESET_BELL};
  if (REAL(epoll_ctl)(s->epfd, EPOLL_CTL_ADD, fd, &e) != 0) {
    extern void bertha_close_hidden(int);
    bertha_close_hidden(fd);
    return;
  }
  s->bell = bell;
  s->bell_fd = fd;
  for (struct slink *k = s->slinks; k != NULL; k = k->next) {
    atomic_store(&k->link->sleepers[k->link->side][k->sleeper].bell, bell);
  }
}

void eset_set_armed(struct eset *s, uint32_t value) {
  if (value != 0) {
    parted_all_end(s);
  }
  for (struct slink *k = s->slinks; k != NULL; k = k->next) {
    if (k->count > 0) {
      _Atomic uint32_t *armed = &k->link->sleepers[k->link->side][k->sleeper].armed;
      if (value != 0) {
        sleeper_arm(&k->link->sleepers[k->link->side][k->sleeper]);
      } else if (atomic_load_explicit(armed, memory_order_relaxed) != 0) {
        atomic_store(armed, 0);
      }
    }
  }
}

void eset_woken(struct eset *s) {
  if (LIKELY(atomic_load_explicit(&s->asleep, memory_order_relaxed) == 0)) {
    eset_set_armed(s, 0);
  }
}

/* Cancelled in its sleep. */
void eset_no_more_asleep(void *p) {
  struct nap *nap = p;
  struct eset *s = nap->set;
  atomic_fetch_sub(&s->asleep, 1);
  if (bertha_lock(&s->lock)) {
    eset_woken(s);
    nest_awake(nap);
    bertha_unlock(&s->lock);
  }
}

/* What this thread leaves behind is for one that sleeps in the same set, as in the kernel; and their bell stays
 * armed for what comes while we are busy.  With the lock held. */
void eset_pass_on_own(struct eset *s) {
  if (LIKELY(atomic_load(&s->asleep) == 0) || s->ring_count == 0) {
    return;
  }
  int saved = errno;
  eset_want_bell(s);
  eset_set_armed(s, 1);
  atomic_thread_fence(memory_order_seq_cst);
  bool more = false;
  for (struct slink *k = s->slinks; k != NULL; k = k->next) {
    for (unsigned i = 0; i < k->words; i++) {
      more |= (k->pending[i] & k->mask[i]) != 0 || slink_changed(k, i);
    }
  }
  uint64_t one = 1;
  if (more && s->bell_fd >= 0 && QUIET(write)(s->bell_fd, &one, sizeof one) < 0) {
    errno = saved;
  }
  for (struct slink *k = s->slinks; more && s->bell_fd < 0 && k != NULL; k = k->next) {
    for (unsigned i = 0; i < k->words; i++) {
      for (uint64_t todo = k->pending[i] & k->mask[i]; todo != 0; todo &= todo - 1) {
        int fd = k->fd[i * 64 + (unsigned)__builtin_ctzll(todo)];
        struct reg *r = &s->regs[fd];
        struct epoll_event e = {.events = eset_sticky(r->events) | EPOLLOUT, .data.u64 = reg_data(r, fd)};
        REAL(epoll_ctl)(s->epfd, EPOLL_CTL_MOD, fd, &e);
      }
    }
  }
  errno = saved;
}

void eset_told(struct eset *s) {
  if (bertha_lock(&s->lock)) { /* else who has it, which we have interrupted, passes on at its end */
    if (s->epfd >= 0) {
      eset_pass_on_own(s);
    }
    bertha_unlock(&s->lock);
  }
}

void eset_pass_on(struct eset *s) {
  if (UNLIKELY(s->inner_count > 0) && atomic_load(&s->asleep) != 0) {
    nest_pass_on(s);
  }
  eset_pass_on_own(s);
}

/* Bytes that were left for other sets: until the ring is drained there is no other byte, and who has no way to ring our bell
 * (a carrier; its agent has ended) has no way to tell us of more. */
static bool bytes_left(struct eset *s) {
  bool left = false;
  for (struct slink *k = s->slinks; k != NULL && UNLIKELY(atomic_load(&s->sharing)); k = k->next) {
    left |= k->count > 0 && share_byte_left(k);
  }
  return left;
}

/* How long to sleep at most, where who has something for us may not be able to ring; -1: it can. */
int64_t eset_sleep_cap(struct eset *s) {
  bool deaf = (s->byte_left || atomic_load(&s->sharing)) && s->bell == 0;
  if (!s->starved && !deaf && !bytes_left(s)) {
    return kin_sleep_cap(s, -1);
  }
  s->starved = false;
  return kin_sleep_cap(s, (s->bell != 0 ? STARVED_MS : NO_BELL_MS) * (int64_t)1000000);
}
