/* A process that is killed by a signal closes nothing in the books: its references in the table, and its side of a slot,
 * would be taken for good.
 *
 * What proves that a record is nobody's: it has one reference, and the process that used it last is gone and had not
 * given up a reference since (`holder`).  That one reference can only be the dead one's.  So a record that several
 * processes have stays until all but one of them have closed theirs; one that was handed to another program stays, and
 * so does everything once a child has lived in another pid namespace, where numbers mean other processes. */
#include "orphans.h"

#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agentc.h"
#include "conn.h"
#include "connlog.h"
#include "links.h"

/* In the table's first page, behind what readers know: one truth for the family. */
static _Atomic uint32_t *numbers_differ(void) {
  return (_Atomic uint32_t *)(void *)((uint8_t *)bertha.table + 2048);
}

/* Calls of exec under way: what they have given up is not this process's again because another thread still uses it. */
static _Atomic uint32_t leaving;

void orphans_leaving(bool begins) {
  atomic_fetch_add(&leaving, begins ? 1 : UINT32_MAX);
}

void orphans_mine(struct conn *c, int fd) {
  uint32_t before = atomic_load(&c->info.holder);
  while (before != BERTHA_HELD_ABROAD) {
    if (atomic_compare_exchange_weak(&c->info.holder, &before, (uint32_t)bertha.pid)) {
      if (conn_of(fd) != c ||
          atomic_load(&leaving) != 0) { /* another thread has given it up since we looked */
        orphans_not_mine(c);
      }
      return;
    }
  }
}

void orphans_not_mine(struct conn *c) {
  uint32_t me = (uint32_t)bertha.pid;
  atomic_compare_exchange_strong(&c->info.holder, &me, 0);
}

/* A child in another pid namespace has no parent that it could name. */
void orphans_after_fork(void) {
  atomic_store(&leaving, 0);
  if (bertha.table_ready && REAL(syscall)(SYS_getppid) == 0) {
    atomic_store(numbers_differ(), 1);
  }
}

static bool gone(uint32_t pid) {
  int saved = errno;
  bool no = kill((pid_t)pid, 0) != 0 && errno == ESRCH;
  errno = saved;
  return no;
}

bool orphans_gone(uint32_t pid) {
  return gone(pid) && atomic_load(numbers_differ()) == 0;
}

/* The slot of a connection as it stands in our own memory: the pointers in the record are the dead process's, and may mean
 * something else here.  NULL: it is not mapped here, or is another connection's. */
static struct bertha_slot *slot_of(const struct conn *c) {
  struct bertha_slot *found = NULL;
  bool client = c->side == BERTHA_SIDE_CLIENT;
  if (!bertha_lock(&mapped.lock)) {
    return NULL;
  }
  for (struct link *l = mapped.links; l != NULL && found == NULL; l = l->next) {
    if (l->index != c->link_index || l->side != c->side || c->slot_index >= l->slot_count) {
      continue;
    }
    struct bertha_slot *s = &l->slots[c->slot_index];
    const uint8_t *at = client ? c->info.local_addr : c->info.peer_addr;
    const uint8_t *to = client ? c->info.peer_addr : c->info.local_addr;
    bool same = BERTHA_SLOT_STATE(atomic_load(&s->state)) == BERTHA_SLOT_ATTACHED &&
                s->tuple.client_port == (client ? c->info.local_port : c->info.peer_port) &&
                s->tuple.server_port == (client ? c->info.peer_port : c->info.local_port) &&
                memcmp(s->tuple.client_addr, at, 16) == 0 && memcmp(s->tuple.server_addr, to, 16) == 0;
    found = same ? s : NULL;
  }
  bertha_unlock(&mapped.lock);
  return found;
}

static void bury(struct conn *c, uint32_t pid) {
  if (conn_kind(c) == BERTHA_CONN_SHM) {
    struct bertha_slot *s = slot_of(c);
    if (s != NULL) { /* as the kernel's: a reset if it had bytes unread, and else an end */
      atomic_store_explicit(&s->dir[c->side].closed, 1, memory_order_release);
      atomic_store_explicit(&s->watch[c->side].done, 1, memory_order_release);
    }
  }
  connlog_killed(c, (int)pid);
  conn_free(c);
}

/* `holder` is what decides who buries it: a record that has been freed and used again has another one. */
unsigned orphans_sweep(void) {
  uint32_t used = atomic_load(&bertha.table->used);
  uint32_t living = 0;
  unsigned n = 0;
  for (uint32_t i = 0; i < used && i < BERTHA_CONNS && !atomic_load(numbers_differ()); i++) {
    struct conn *c = conn_by_index(i);
    uint32_t holder = atomic_load(&c->info.holder);
    if (holder == 0 || holder == BERTHA_HELD_ABROAD || holder == (uint32_t)bertha.pid || holder == living ||
        conn_kind(c) == BERTHA_CONN_FREE || atomic_load(&c->info.refs) != 1 || c->home != NULL) {
      continue;
    }
    if (!gone(holder)) {
      living = holder;
      continue;
    }
    uint32_t expected = holder;
    uint32_t one = 1;
    if (!atomic_compare_exchange_strong(&c->info.holder, &expected, BERTHA_HELD_ABROAD)) {
      continue;
    }
    if (atomic_compare_exchange_strong(&c->info.refs, &one, 0)) {
      bury(c, holder);
      n++;
    } else {
      atomic_store(&c->info.holder, holder);
    }
  }
  return n;
}
