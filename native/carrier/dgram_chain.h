/* The chunnels of datagrams that stand on `reliable`: frame() |> ... |> reliable(), where what is between the two makes a
 * stream of another stream (compress, encrypt).  No I/O, and nothing of `reliable` itself: pieces of a stream go down and
 * come up, in order. */
#ifndef BERTHA_DGRAM_CHAIN_H
#define BERTHA_DGRAM_CHAIN_H

#include "session.h"

enum { CHAIN_MAX = 8, CHAIN_PIECE_MAX = 2 * 1024 * 1024 /* bertha_socket/chunnels/reliable.py: CHUNK_MAX */ };

struct chain {
  bool framed;     /* false: `reliable` alone, and nothing is done here */
  unsigned stages; /* between frame and reliable; stage 0 is the network's */
  struct chunnel *stage[CHAIN_MAX];
  /* Stage i reads down[i + 1] and writes down[i]; reads up[i] and writes up[i + 1]. */
  struct buffer down[CHAIN_MAX + 1], up[CHAIN_MAX + 1];
  uint32_t most; /* bytes of a message, as frame's argument has it */
  uint32_t skip; /* of a message that no program could be given, bytes that are yet to come */
  uint64_t skipped;
  char why[200];
};

/* Whether a plan's chunnels that run at this end are these, all in C; and the arguments of reliable. */
bool chain_fits(const uint8_t *plan, size_t size, bool server, struct pack_value *reliable_args);
/* Of a plan that fits.  Each of these: false, it has failed, and `why` says how. */
bool chain_open(struct chain *c, const uint8_t *plan, size_t size, bool server,
                const struct secrets *secrets);
bool chain_send(struct chain *c, const uint8_t *message, size_t size); /* of the program */
bool chain_came(struct chain *c, const uint8_t *piece, size_t size);   /* what reliable has brought */
bool chain_move(struct chain *c);                                      /* as far as it goes */
void chain_close(struct chain *c);
/* Bytes for reliable, at most so many as one message of it should have; 0: there are none. */
size_t chain_below(const struct chain *c, const uint8_t **data);
void chain_sent(struct chain *c, size_t size); /* of them */
/* The next whole message for the program, whose bytes last until `chain_given`; false: there is none. */
bool chain_above(struct chain *c, const uint8_t **data, size_t *size);
void chain_given(struct chain *c, size_t size);
bool chain_full(const struct chain *c);  /* the program had better wait */
bool chain_holds(const struct chain *c); /* something of the program's has not gone to reliable yet */

#endif
