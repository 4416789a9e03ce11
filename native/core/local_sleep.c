/* Awake, asleep, and what becomes of datagrams that the other end does not take. */
#include "local.h"

#include <netinet/in.h>
#include <string.h>

#include "wait.h"

enum { QUIET_SLEEPS = 16 };

/* ---- awake and asleep ------------------------------------------------------------------------------ */

void local_heat(struct local *d, struct pair *p) {
  p->quiet = 0;
  if (!p->hot && !d->kernel_only && p->tied && p->opened && !p->ended && (d->server || p->heard) &&
      (d->watched.epfd < 0 || d->watched.waited) &&
      atomic_load_explicit(&d->c->info.refs, memory_order_relaxed) == 1) {
    p->hot = true;
    p->next_hot = d->hot;
    d->hot = p;
    if (d->asleep == 0) { /* else when it wakes up */
      atomic_store_explicit(&p->in->awake, 1, memory_order_release);
    }
  }
}

/* A mark may be of what has been taken since: a program that is told of something must not wait for it. */
static const struct pair *inlet_next(const struct inlet *in) {
  const struct link *l = in->link;
  for (unsigned w = 0; w < in->words; w++) {
    uint64_t marks =
        in->pending[w] | atomic_load_explicit(&l->dirty[BERTHA_SIDE_SERVER][w], memory_order_acquire);
    for (; marks != 0; marks &= marks - 1) {
      const struct pair *p = in->pair[w * 64 + (unsigned)__builtin_ctzll(marks)];
      if (p != NULL && box_ready(p->in, p->head)) {
        return p;
      }
    }
  }
  return NULL;
}

const struct pair *local_next(struct local *d) {
  const struct pair *found = NULL;
  for (unsigned i = 0; d->server && found == NULL && i < d->inlet_count; i++) {
    found = inlet_next(d->inlet[i]);
  }
  for (struct pair *p = d->server ? NULL : d->pairs; p != NULL && found == NULL; p = p->sibling) {
    found = local_client_tied(p) && box_ready(p->in, p->head) ? p : NULL;
  }
  return found;
}

bool local_ready(struct local *d) {
  return local_next(d) != NULL;
}

/* Of two that are ready neither keeps the other from being read: when it is the kernel's turn, and it has something, that is what
 * the program is told of. */
static bool kernels_turn(struct local *d) {
  if (LIKELY(d->takes + 1 < KERNEL_EVERY)) {
    return false;
  }
  struct pollfd queue = {.fd = d->fd, .events = POLLIN};
  int saved = errno;
  bool there = QUIET(poll)(&queue, 1, 0) == 1;
  errno = saved;
  d->takes = there ? d->takes : 0;
  return there;
}

static bool hold_one(struct local *d) {
  const struct pair *p = d->looked_at;
  if (d->looked == LOOKED_IN_BOX && box_hold(p->in, p->head)) {
    return true;
  }
  for (int tries = 0; tries < 4 && (p = local_next(d)) != NULL;
       tries++) { /* it may be taken back each time */
    if (box_hold(p->in, p->head)) {
      d->looked = LOOKED_IN_BOX;
      d->looked_at = p;
      return true;
    }
  }
  return false;
}

bool local_tell(struct local *d) {
  if (!bertha_lock(&d->lock)) { /* in a signal handler that came upon this very socket */
    return local_ready(d);
  }
  bool there = d->c != NULL && local_ready(d);
  if (there && d->looked != LOOKED_IN_KERNEL &&
      atomic_load_explicit(&d->c->info.refs, memory_order_relaxed) ==
          1) { /* else another process may be the reader */
    there = (d->looked == LOOKED_NOWHERE && kernels_turn(d)) || hold_one(d);
  }
  bertha_unlock(&d->lock);
  return there;
}

static bool is_behind(const struct pair *p) {
  return atomic_load(&p->in->taken) < atomic_load(&p->in->begun);
}

static bool may_settle(struct pair *p, int64_t *clock) {
  if (LIKELY(p->opened && !is_behind(p))) {
    p->since = 0;
    return false;
  }
  int64_t now = *clock =
      *clock != 0 ? *clock : bertha_now_ns(); /* once for all, and only where somebody is behind */
  if (!p->opened) { /* the other end's datagrams of before the tie were not counted */
    return p->tied && now - p->since >= ON_ITS_WAY_NS;
  }
  p->since = p->since != 0 ? p->since : now; /* one that the kernel dropped is never taken */
  return now - p->since >= DROPPED_NS;
}

/* When the kernel has nothing, all that was sent before that has come, or never will. */
static void settle_counts(struct local *d) {
  int64_t clock = 0;
  for (struct pair *p = d->server ? d->hot : d->pairs, *next; p != NULL; p = next) {
    next = d->server ? p->next_hot : p->sibling;
    if (LIKELY(!may_settle(p, &clock))) {
      continue;
    }
    uint64_t sent = atomic_load(&p->in->sent);
    struct pollfd queue = {.fd = d->fd, .events = POLLIN}; /* a receive would take an error with it */
    if (QUIET(poll)(&queue, 1, 0) >= 0 && !(queue.revents & (POLLIN | POLLNVAL))) {
      atomic_store(&p->in->taken, sent);
      p->opened = true;
      p->since = 0;
      local_heat(d, p);
    }
  }
}

static void look_again(struct local *d) {
  for (struct pair **at = &d->hot; *at != NULL;) {
    struct pair *p = *at;
    if (++p->quiet > QUIET_SLEEPS) {
      *at = p->next_hot;
      p->hot = false;
      continue;
    }
    atomic_store_explicit(&p->in->awake, 1, memory_order_release);
    at = &p->next_hot;
  }
}

bool local_fall_asleep(struct local *d) {
  int saved = errno;
  settle_counts(d);
  errno = saved;
  for (struct pair *p = d->hot; p != NULL; p = p->next_hot) {
    atomic_store_explicit(&p->in->awake, 0, memory_order_relaxed);
  }
  atomic_thread_fence(memory_order_seq_cst);
  if (local_ready(d)) {
    if (d->asleep == 0) {
      look_again(d);
    }
    return false;
  }
  d->asleep++;
  return true;
}

void local_awake(struct local *d) {
  if (d->asleep > 0 && --d->asleep == 0) {
    look_again(d);
  }
}

/* Who is behind gets all by the kernel, and its counts are settled when it sleeps. */
int64_t local_spin_bound(const struct local *d) {
  const struct pair *p = d->hot;
  return p != NULL && !is_behind(p) && !same_processor(p->link) ? link_spin_bound(p->link) : 0;
}

/* Under load the kernel is not asked with each call that finds no more in a box.  What another process has sent by it in the last
 * moment may still be on its way; what this one has sent itself is not. */
void local_kernel_empty(struct local *d) {
  d->empty = bertha_now_ns();
  d->empty_stir = atomic_load_explicit(&local_stir, memory_order_relaxed);
}

bool local_kernel_is_empty(const struct local *d) {
  return d->empty != 0 && d->hot != NULL &&
         d->empty_stir == atomic_load_explicit(&local_stir, memory_order_relaxed) &&
         bertha_now_ns() - d->empty < LOCAL_EMPTY_NS;
}

/* ---- who does not read ----------------------------------------------------------------------------- */

int64_t local_waits_for_readers(struct local *d) {
  int64_t ns = 0;
  for (struct pair *p = d->pairs; p != NULL; p = p->sibling) {
    if (p->tied && box_lies(p->out, p->tail)) {
      if (box_unread(p->out, p->tail)) {
        return RESCUE_NS;
      }
      ns = RESCUE_LATE_NS;
    }
  }
  return ns;
}

static void send_by_kernel(const struct local *d, struct pair *p, const uint8_t *data, int size) {
  union {
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
  } to = {.in6 = {.sin6_family = AF_INET6, .sin6_port = htons(p->port), .sin6_scope_id = p->scope}};
  bool v4 = (d->c->info.family & ~BERTHA_FAMILY_DATAGRAMS) == AF_INET;
  if (v4) {
    to.in = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(p->port)};
    memcpy(&to.in.sin_addr, p->addr + 12, 4);
  } else {
    memcpy(&to.in6.sin6_addr, p->addr, 16);
  }
  bool connected =
      !d->server && d->c->info.peer_port == p->port && memcmp(d->c->info.peer_addr, p->addr, 16) == 0;
  struct iovec iov = {(void *)(uintptr_t)data, (size_t)size};
  struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
  if (!connected) {
    msg.msg_name = &to;
    msg.msg_namelen = v4 ? sizeof to.in : sizeof to.in6;
  }
  atomic_fetch_add(&p->out->begun, 1);
  atomic_fetch_add_explicit(&local_stir, 1, memory_order_relaxed);
  QUIET(sendmsg)(d->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
  atomic_store(&p->out->sent, atomic_load(&p->out->begun)); /* what failed counts as one that was dropped */
}

void local_take_back(struct local *d, struct pair *p) {
  if (!d->leaving && conn_of(d->fd) != d->c) { /* its number is another one by now */
    return;
  }
  const uint8_t *data[BOX_ITEMS];
  int size[BOX_ITEMS];
  int n = 0;
  while (n < BOX_ITEMS && (size[n] = box_take_back(p->out, &p->tail, &data[n])) >= 0) {
    n++;
  }
  while (n-- > 0) { /* the newest was taken back first */
    send_by_kernel(d, p, data[n], size[n]);
  }
}

void local_rescue(struct local *d, bool at_once) {
  int saved = errno;
  int64_t now = at_once ? 0 : bertha_now_ns();
  for (struct pair *p = d->pairs; p != NULL; p = p->sibling) {
    if (p->tied && box_unread(p->out, p->tail) && (at_once || now - p->put_at >= RESCUE_NS)) {
      local_take_back(d, p);
    }
  }
  errno = saved;
}
