/* How a connection gets away from its slot: it stays plain, goes back to the kernel, or is closed. */
#include "agentc.h"
#include "abroad.h"
#include "brief.h"
#include "carried.h"
#include "conn.h"
#include "connlog.h"
#include "dgram.h"
#include "local.h"
#include "trim.h"
#include "unixpair.h"

/* The client's claim, if the server has not taken it yet.  The slot is found free by a sweep. */
static bool give_up_claim(struct conn *c) {
  struct bertha_slot *s = c->slot;
  uint32_t word = atomic_load(&s->state);
  if (BERTHA_SLOT_STATE(word) == BERTHA_SLOT_ATTACHED ||
      (BERTHA_SLOT_STATE(word) == BERTHA_SLOT_CLAIMED &&
       !atomic_compare_exchange_strong(&s->state, &word,
                                       BERTHA_SLOT_WORD(BERTHA_SLOT_USE(word), BERTHA_SLOT_REFUSED)))) {
    return false;
  }
  uint32_t tag = tuple_tag(s->tuple.client_addr, s->tuple.client_port);
  claim_withdraw(c->link->claims, tag, bertha_claim_word(tag, c->link->index, c->slot_index));
  return true;
}

bool conn_stays_plain(struct conn *c, uint32_t why) {
  bool plain = false;
  if (bertha_lock(&c->rx_lock)) {
    if (conn_kind(c) == BERTHA_CONN_MAYBE) {
      conn_make_plain(c, why);
      plain = true;
    }
    bertha_unlock(&c->rx_lock);
  }
  return plain;
}

uint32_t conn_decide(struct conn *c, int fd, uint32_t why) {
  for (int tries = 0; tries < 3; tries++) {
    conn_ripe(c, fd);
    uint32_t kind = conn_kind(c);
    if ((kind != BERTHA_CONN_MAYBE && kind != BERTHA_CONN_CLAIMED) || !bertha_lock(&c->rx_lock)) {
      return kind;
    }
    kind = conn_kind(c);
    if (kind == BERTHA_CONN_MAYBE) {
      conn_make_plain(c, why);
    } else if (kind == BERTHA_CONN_CLAIMED && give_up_claim(c)) {
      conn_make_plain(c, why);
      unix_drop(c);
      slot_give_back(c->link, c->slot_index);
    }
    bertha_unlock(&c->rx_lock);
  }
  return conn_kind(c);
}

static void withdraw(struct conn *c) {
  struct bertha_slot *s = c->slot;
  uint32_t word = atomic_load(&s->state);
  if (BERTHA_SLOT_STATE(word) == BERTHA_SLOT_CLAIMED &&
      atomic_compare_exchange_strong(&s->state, &word,
                                     BERTHA_SLOT_WORD(BERTHA_SLOT_USE(word), BERTHA_SLOT_REFUSED))) {
    uint32_t tag = tuple_tag(s->tuple.client_addr, s->tuple.client_port);
    claim_withdraw(c->link->claims, tag, bertha_claim_word(tag, c->link->index, c->slot_index));
  } /* else the server was quicker; it learns of our end by the kernel */
  unix_drop(c);
  slot_give_back(c->link, c->slot_index);
  c->slot = NULL;
}

void conn_stay_in_kernel(struct conn *c, int fd, uint32_t why) {
  local_kernels(c);
  if (conn_decide(c, fd, why) == BERTHA_CONN_SHM) {
    conn_leave_ring(c, why);
  } else if (conn_kind(c) == BERTHA_CONN_SOCKET) {
    conn_set_flag(c, CONN_NO_ATTACH | CONN_KERNELS);
    c->info.reason = why;
  } else if (conn_kind(c) == BERTHA_CONN_LISTENER) {
    conn_set_flag(c, CONN_KERNELS);
  }
}

/* A bell byte in the kernel's queue, or one that arrives after the close, would count as unread data and make the
 * kernel reset the connection.  Who has taken `bell_out` has the right to ring: take it, and nobody will; if it was
 * taken, its byte is there or about to be. */
static void silence(struct conn *c, int fd) {
  if (atomic_exchange(&conn_rx(c)->bell_out, 1) == 0) {
    return;
  }
  for (int tries = 0; tries < 20 && !bell_take_byte(c, fd); tries++) {
    QUIET(nap)(50000);
  }
}

void conn_last_close(struct conn *c, int fd) {
  if (conn_flags(c) & CONN_DGRAM) {
    dgram_closing(c, fd);
  }
  if (conn_kind(c) == BERTHA_CONN_UNIX) {
    unix_last_close(c);
  }
  if (conn_kind(c) != BERTHA_CONN_SHM) {
    return;
  }
  borrow_end(c);
  struct bertha_direction *rx = conn_rx(c);
  bool unread =
      c->rx_phase != PHASE_AFTER && atomic_load_explicit(&rx->tail, memory_order_acquire) != c->rx_head;
  bool reset = unread || (conn_flags(c) & CONN_LINGER_0);
  atomic_store_explicit(&conn_tx(c)->closed, reset ? 2 : 1, memory_order_release);
  if (unread) { /* the kernel resets a connection that is closed with unread data (RFC 1122, 4.2.2.13) */
    struct linger now = {1, 0};
    REAL(setsockopt)(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  } else if (!reset && c->rx_phase != PHASE_AFTER && !(conn_flags(c) & CONN_RST) &&
             bertha_lock(&c->rx_lock)) {
    int saved = errno;
    while (atomic_load(&c->bell_debt) > 0 && bell_take_byte(c, fd)) {
      atomic_fetch_sub(&c->bell_debt, 1);
    }
    if (c->rx_phase == PHASE_RING || atomic_load(&rx->switch_at) == atomic_load(&c->krx)) {
      silence(c, fd);
    }
    errno = saved;
    bertha_unlock(&c->rx_lock);
  }
}

void conn_after_close(struct conn *c) {
  struct bertha_slot *s = c->slot;
  uint32_t kind = conn_kind(c);
  if (kind == BERTHA_CONN_SHM) {
    trim_closing();
  }
  if (c->chosen != 0) {
    brief_closed(c);
  }
  struct listener *listener = NULL;
  if (kind == BERTHA_CONN_LISTENER && c->listener != 0) {
    struct bertha_unlisten body = {.listener = c->listener};
    agent_call(BERTHA_OP_UNLISTEN, &body, sizeof body, NULL, 0, NULL, 0, NULL, 0);
    listener = listener_of(c);
  } else if (kind == BERTHA_CONN_CLAIMED && s != NULL) {
    withdraw(c);
  } else if (kind == BERTHA_CONN_SHM ||
             (kind == BERTHA_CONN_UNIX && s != NULL && !(conn_flags(c) & CONN_HOP_LEFT))) {
    if (kind == BERTHA_CONN_UNIX && !(conn_flags(c) & CONN_CARRIED)) {
      unix_closed(c);
    }
    if (c->side == BERTHA_SIDE_CLIENT) {
      slot_give_back(c->link, c->slot_index);
    } else {
      slot_leave(c->link, c->slot_index, BERTHA_SIDE_SERVER);
    }
  } else if ((kind == BERTHA_CONN_UNIX && (conn_flags(c) & CONN_DGRAM)) ||
             ((conn_flags(c) & CONN_LOCAL) && c->side == BERTHA_SIDE_SERVER)) {
    dgram_closed(c); /* the agent is asked when the descriptor is closed, and nobody waits for the books */
  }
  if ((conn_flags(c) & (CONN_CARRIED | CONN_DGRAM)) == CONN_CARRIED) {
    carried_ended(c);
  }
  conn_free(c);
  if (listener != NULL) {
    listener_closed(listener);
  }
}

void conn_release(struct conn *c, int fd) {
  (void)fd;
  if (atomic_fetch_sub(&c->info.refs, 1) == 1) {
    if (!abroad_give_up(c)) {
      trim_closing();
      conn_free(c);
      return;
    }
    connlog_write(c, fd);
    conn_after_close(c);
  }
}
