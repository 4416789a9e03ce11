/* What becomes of links and listeners that are not needed any more: a program may open a listener for each transfer
 * (FTP's passive mode), and its client meets them all.
 *
 * Descriptors, memory and the agent's books are given back at once; the address range later, because another thread may
 * still look there, in a call on a connection that was closed under its hands.  It finds zeros.  A range is used again,
 * for memory of the same size and never unmapped, when no thread and no epoll set of this process has an entry among
 * its sleepers, and some time after; the records of `struct link` and `struct listener` likewise.  So such a thread
 * never faults, and what it may do to a stranger's connection is no more than where a slot is used again.
 *
 * Which connections use a link is asked of the table, which all processes of the family share; a pointer to a link in
 * it that is another process's fits one of ours by chance at worst, and then keeps it. */
#include <string.h>
#include <sys/mman.h>

#include "agentc.h"
#include "fsize.h"
#include "links.h"
#include "room.h"
#include "unixmail.h"

enum { AT_ONCE = 64 };
#define QUIET_NS 1000000000

extern void bertha_close_hidden(int fd);

struct candidates {
  unsigned links;
  unsigned listeners;
  struct link *link[AT_ONCE];
  struct listener *listener[AT_ONCE];
};

static bool listed(const struct link *l) {
  struct dir_hit hits[BERTHA_RESOLVE_MAX];
  int n = directory_find(l->addr, l->port, hits, BERTHA_RESOLVE_MAX / 2);
  n += directory_find_datagrams(l->addr, l->port, hits + n, BERTHA_RESOLVE_MAX - n);
  for (int i = 0; i < n; i++) {
    if (hits[i].listener == l->listener) {
      return true;
    }
  }
  return n == 0 && directory_generation() == 0; /* no agent: nobody knows */
}

static const struct listener *listener_behind(const struct link *l) {
  const struct listener *at = mapped.listeners;
  while (at != NULL && at->id != l->listener) {
    at = at->next;
  }
  return at;
}

static bool may_go(const struct link *l, bool idle_too) {
  if (l->claims == NULL && l->side == BERTHA_SIDE_CLIENT) {
    return false; /* to a carrier, or by an exec */
  }
  if (atomic_load(&l->pairs) != 0) {
    return false;
  }
  if (atomic_load(&l->header->dead)) {
    return true;
  }
  if (l->side == BERTHA_SIDE_CLIENT) {
    return l->owner_pid == bertha.pid && (idle_too || !listed(l));
  }
  const struct listener *at = listener_behind(l);
  return at != NULL && !at->serves;
}

static bool leads_to(const struct listener *at) {
  const struct link *l = mapped.links;
  while (l != NULL && (l->side != BERTHA_SIDE_CLIENT || l->claims != at->claims)) {
    l = l->next;
  }
  return l != NULL;
}

static void strike_out(struct candidates *all, const struct conn *c) {
  uint32_t kind = conn_kind(c);
  bool busy = atomic_load(&c->rx_lock) != 0 || atomic_load(&c->tx_lock) != 0; /* whatever has become of it */
  bool on_link = busy || (kind != BERTHA_CONN_FREE && kind != BERTHA_CONN_PLAIN);
  for (unsigned i = 0; on_link && i < all->links; i++) {
    if (all->link[i] == c->link) {
      all->link[i] = all->link[--all->links];
      break;
    }
  }
  for (unsigned i = 0; (busy || kind != BERTHA_CONN_FREE) && i < all->listeners; i++) {
    if (all->listener[i]->id == c->listener) {
      all->listener[i] = all->listener[--all->listeners];
      break;
    }
  }
}

static bool is_candidate(const struct candidates *all, const struct listener *at) {
  for (unsigned i = 0; i < all->listeners; i++) {
    if (all->listener[i] == at) {
      return true;
    }
  }
  return false;
}

/* The address range stays, the memory goes.  Memory of our own counts where vm.overcommit_memory is 2: then it is a file's,
 * or goes when the range is used again. */
static void let_go(void *base, size_t size) {
  if (room_map(base, size, -1) != NULL) {
    return;
  }
  int fd = REAL(memfd_create)("bertha-void", MFD_CLOEXEC);
  if (fd >= 0) {
    if (fsize_make(fd, size) == 0) {
      room_map(base, size, fd);
    }
    REAL(close)(fd);
  }
}

static void retire_link(struct link *l) {
  struct link **place = &mapped.links;
  while (*place != NULL && *place != l) {
    place = &(*place)->next;
  }
  if (*place == NULL) {
    return;
  }
  *place = l->next;
  if (l->side == BERTHA_SIDE_CLIENT && l->owner_pid == bertha.pid) {
    atomic_store(&l->header->dead, 1); /* the server need not ask the agent */
  }
  int fd = l->fd;
  int mailbox = l->mailbox;
  l->fd = l->mailbox = -1;
  mail_forget(l);
  bertha_close_hidden(fd);
  bertha_close_hidden(mailbox);
  link_hold_again(l->listener, l->index);
  let_go(l->base, l->size);
  l->since = bertha_now_ns();
  atomic_store(&l->retired, true);
  l->next = mapped.old_links;
  mapped.old_links = l;
}

static void retire_listener(struct listener *at) {
  struct listener **place = &mapped.listeners;
  while (*place != NULL && *place != at) {
    place = &(*place)->next;
  }
  if (*place != NULL) {
    *place = at->next;
    uint32_t need = atomic_load(&at->claims->dag);
    uint32_t carrier = atomic_load(&at->claims->dag_carrier);
    uint32_t spin_us = atomic_load(&at->claims->dag_spin_us);
    let_go(at->claims, at->size);
    if (need != BERTHA_DAG_NONE) { /* an accept() that is just under way must not take it for a plain one's */
      atomic_store(&at->claims->dag_spin_us, spin_us);
      atomic_store(&at->claims->dag_carrier, carrier);
      atomic_store(&at->claims->dag, need);
    }
    at->since = bertha_now_ns();
    at->next = mapped.old_listeners;
    mapped.old_listeners = at;
  }
}

/* With the lock held.  `told`: what the agent is to hear of. */
static unsigned retire(bool idle_too, struct bertha_link *told) {
  struct candidates all = {0};
  unsigned n = 0;
  for (struct link *l = mapped.links; l != NULL && all.links < AT_ONCE; l = l->next) {
    if (may_go(l, idle_too)) {
      all.link[all.links++] = l;
    }
  }
  for (struct listener *at = mapped.listeners; at != NULL && all.listeners < AT_ONCE; at = at->next) {
    if (!at->serves && at->pins == 0) {
      all.listener[all.listeners++] = at;
    }
  }
  if (all.links + all.listeners == 0 || !bertha.table_ready) {
    return 0;
  }
  uint32_t used = atomic_load(&bertha.table->used);
  for (uint32_t i = 0; i < used && i < BERTHA_CONNS && all.links + all.listeners > 0; i++) {
    strike_out(&all, conn_by_index(i));
  }
  for (unsigned i = 0; i < all.links; i++) {
    struct link *l = all.link[i];
    const struct listener *at = listener_behind(l);
    /* A connection that is yet to be tied names the listener alone. */
    if (l->side == BERTHA_SIDE_SERVER && !atomic_load(&l->header->dead) && !is_candidate(&all, at)) {
      continue;
    }
    bool ours = l->side == BERTHA_SIDE_CLIENT && l->owner_pid == bertha.pid;
    told[n] = (struct bertha_link){.listener = ours ? l->listener : 0, .index = l->index};
    retire_link(l);
    n++;
  }
  for (unsigned i = 0; i < all.listeners; i++) {
    if (!leads_to(all.listener[i])) {
      retire_listener(all.listener[i]);
    }
  }
  return n;
}

unsigned links_retire(bool idle_too) {
  struct bertha_link told[AT_ONCE];
  unsigned n = 0;
  conn_books_begin();
  if (bertha_lock(&mapped.lock)) {
    n = retire(idle_too, told);
    bertha_unlock(&mapped.lock);
  }
  conn_books_end();
  for (unsigned i = 0; i < n; i++) { /* without the lock: it may take a while */
    if (told[i].listener != 0) {
      agent_call(BERTHA_OP_UNLINK, &told[i], sizeof told[i], NULL, 0, NULL, 0, NULL, 0);
    }
  }
  return n;
}

void listener_closed(struct listener *l) {
  if (bertha_lock(&mapped.lock)) {
    l->serves = false;
    bertha_unlock(&mapped.lock);
  }
  links_retire(false);
}

void listener_unpin(struct listener *l) {
  if (bertha_lock(&mapped.lock)) {
    l->pins -= l->pins > 0;
    bertha_unlock(&mapped.lock);
  }
}

struct link *old_link(size_t size) {
  if (!bertha_lock(&mapped.lock)) {
    return NULL;
  }
  int64_t now = bertha_now_ns();
  struct link **place = &mapped.old_links;
  while (*place != NULL && ((*place)->size != size || atomic_load(&(*place)->named) != 0 ||
                            atomic_load(&(*place)->pairs) != 0 || now - (*place)->since < QUIET_NS)) {
    place = &(*place)->next;
  }
  struct link *l = *place;
  if (l != NULL) {
    *place = l->next;
    atomic_store(&l->retired, false);
  }
  bertha_unlock(&mapped.lock);
  return l;
}

struct listener *old_listener(size_t size) {
  int64_t now = bertha_now_ns();
  struct listener **place = &mapped.old_listeners;
  while (*place != NULL && ((*place)->size != size || now - (*place)->since < QUIET_NS)) {
    place = &(*place)->next;
  }
  struct listener *l = *place;
  if (l != NULL) {
    *place = l->next;
  }
  return l;
}
