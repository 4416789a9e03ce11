/* What has been sent by the kernel: counted, so that a box is used only when all of that has been taken; and told apart, before
 * the other end knows whose it is. */
#include "../carrier/carrier.h"
#include "local.h"

/* 0: of one that no datagram can be, which is not read: it may be longer than what is mapped there. */
static uint32_t sum_of(const struct msghdr *msg) {
  size_t size = local_bytes(msg);
  return size <= BERTHA_DGRAM_MAX ? box_sum(msg->msg_iov, (int)msg->msg_iovlen, size) : 0;
}

static bool is_new(struct local *d, uint32_t sum) {
  for (unsigned i = 0; i < d->sum_count && !d->vague; i++) {
    if (d->sums[i] == sum) {
      return false;
    }
  }
  d->vague |= d->sum_count == SUMS;
  if (!d->vague) {
    d->sums[d->sum_count++] = sum;
  }
  return !d->vague;
}

/* The server knows by the sum that what has come is ours, and takes it for the one with that number.  Of several that are alike, wherever
 * they were sent, it may be any: then it has the number 0, and the server finds out when it has them all by an empty queue. */
static void announce(struct local *d, struct pair *p, uint64_t number, const struct msghdr *msg) {
  uint32_t sum = sum_of(msg);
  if (!is_new(d, sum) || number > UINT32_MAX) {
    number = 0;
    if (!p->vague) {
      p->vague = true;
      atomic_fetch_add(&p->out->begun, MANY); /* what it is yet to take does not make up for them */
    }
  }
  atomic_store(&p->out->announced, number << 32 | sum);
}

/* The other end tells datagrams by where they come from: what goes to an address that has no pair, or none that is tied, may be
 * counted there as one of any other address of that port.  Counted once too often is settled in time, once too seldom is not. */
static void count(struct local *d, struct pair *p, uint16_t port) {
  if (LIKELY(p != NULL && p->tied)) {
    atomic_fetch_add(&p->out->begun, 1);
    return;
  }
  for (p = d->bucket[port % PAIR_BUCKETS]; p != NULL; p = p->next) {
    if (p->port == port) {
      atomic_fetch_add(&p->out->begun, 1);
    }
  }
}

void local_begin_send(struct local *d, struct pair *p, uint16_t port, const struct msghdr *msg) {
  count(d, p, port);
  if (d->server || msg == NULL) {
    return;
  }
  if (p == NULL && !d->vague) {
    is_new(d, sum_of(msg));
  } else if (p != NULL && !p->tied) {
    announce(d, p, atomic_load(&p->out->begun), msg);
  }
}

/* What failed counts as one that was dropped. */
void local_end_send(struct local *d, struct pair *p, uint16_t port) {
  if (LIKELY(p != NULL && p->tied)) {
    atomic_store(&p->out->sent, atomic_load(&p->out->begun));
    return;
  }
  for (p = d->bucket[port % PAIR_BUCKETS]; p != NULL; p = p->next) {
    if (p->port == port) {
      atomic_store(&p->out->sent, atomic_load(&p->out->begun));
    }
  }
}

void local_look_who_shares(struct local *d) {
  bool shared = atomic_load_explicit(&d->c->info.refs, memory_order_relaxed) != 1;
  for (struct pair *p = d->pairs; p != NULL && !shared; p = p->sibling) {
    atomic_fetch_add(&p->out->begun, MANY);
    atomic_store(&p->out->sent, atomic_load(&p->out->begun));
  }
  d->shared = shared;
  d->vague = true;
}
