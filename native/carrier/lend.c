/* An encrypted connection whose program does its records itself (core/borrow.c): offered, and taken back.
 *
 * With a carrier each message is woken for four times more between two programs than it is in programs that encrypt by
 * themselves.  The carrier has shaken hands, has the secrets of certificates, and is there when the program is not: it has
 * forked, executed something, closed, died, or does not keep up.  In between the program needs nobody.
 *
 * What the program writes into the loan is a stranger's: sizes are bounded, and the rest is its own loss. */
#include "../chunnels/encrypt.h"
#include "../core/conn.h"
#include "../core/hop.h"
#include "session.h"

static bool nothing_under_way(const struct session *s) {
  bool ended =
      s->down_end[0] || s->down_end[1] || s->up_end[0] || s->up_end[1] || s->tcp_shut || s->program_shut;
  return !ended && buffer_size(&s->down[0]) == 0 && buffer_size(&s->down[1]) == 0 &&
         buffer_size(&s->up[0]) == 0 && buffer_size(&s->up[1]) == 0;
}

/* `encrypt` is all that runs here, and both ends have agreed on that. */
static bool may_be_lent(const struct session *s) {
  return s->ring != NULL && s->state == BERTHA_CARRIED_READY && s->up_open && s->stages == 1 &&
         s->stage[0]->ops == &chunnel_encrypt && !s->parting && !s->aborted && !s->program_gone &&
         !s->tcp_error && !s->tcp_more && !s->program_more && hop_both_ways(s->ring);
}

void lend_offer(struct session *s) {
  struct bertha_loan *loan = s->ring != NULL ? hop_loan(s->ring) : NULL;
  if (loan == NULL || hop_wanted(s->ring) != BERTHA_LOAN_WANTED || !may_be_lent(s) || !nothing_under_way(s) ||
      !encrypt_lend(s->stage[0], &loan->records)) {
    return;
  }
  loan->ended = loan->failed = loan->in_size = loan->out_at = loan->out_size = 0;
  loan->error = 0;
  s->lent = true;
  atomic_store(hop_turn(s->ring), BERTHA_TURN_OFFERED);
  signal_mark(s->ring); /* it looks when it is awake: nothing is to be done at once */
}

/* Of one that has ended, by the kernel's word.  In the middle of a record, nobody knows how much of it is sent. */
static bool died_within(const struct bertha_loan *loan) {
  return atomic_load(&loan->lock) != 0;
}

static void take_over(struct session *s, const struct bertha_loan *loan) {
  struct bertha_records records = loan->records;
  size_t in = loan->in_size, at = loan->out_at, out = loan->out_size;
  bool notified = loan->ended != 0;
  s->lent_error = loan->error;
  atomic_signal_fence(memory_order_seq_cst); /* what is checked is what is used: no reading again */
  hop_resume(s->ring);
  if (loan->failed || in > sizeof loan->in || out > sizeof loan->out || at > out) {
    s->lent_why = "encrypt: what came is not what was sent";
  } else if (!buffer_add(&s->up[0], loan->in, in) || !buffer_add(&s->down[0], loan->out + at, out - at) ||
             !encrypt_back(s->stage[0], &records, notified)) {
    s->lent_why = "encrypt: no memory";
  }
  explicit_bzero(&records, sizeof records);
}

bool lend_back(struct session *s) {
  struct bertha_loan *loan = hop_loan(s->ring);
  uint32_t turn = BERTHA_TURN_OFFERED;
  if (atomic_compare_exchange_strong(hop_turn(s->ring), &turn, BERTHA_TURN_CARRIER)) {
    s->lent = false; /* nobody has taken it */
    return true;
  }
  if (turn == BERTHA_TURN_PROGRAM && !s->program_gone) {
    if (!s->unwatched) { /* the program has it in a set of its own */
      carrier_unwatch(s->tcp);
      s->unwatched = true;
    }
    return false;
  }
  s->lent = false;
  if (turn == BERTHA_TURN_PROGRAM && died_within(loan)) {
    s->lent_why = "the program ended in the middle of a record";
  } else {
    take_over(s, loan);
  }
  /* Both tell of what there is, also of an end that came meanwhile. */
  carrier_watch_tcp(s, !s->unwatched);
  s->unwatched = false;
  s->tcp_in = s->tcp_out = s->program_in = s->program_out = true;
  carrier_queue(s);
  return true;
}
