/* One end of `reliable` as Python has it: one call for something that happens, and all that comes of it. */
#ifndef BERTHA_RELIABLE_PIPE_H
#define BERTHA_RELIABLE_PIPE_H

#include <stddef.h>
#include <stdint.h>

#include "../chunnels/reliable.h"

struct reliable_pipe {
  double deadline; /* seconds of the caller's clock; INFINITY: never */
  /* What the last call gave, until the next one: messages for the program, then datagrams for the network. */
  const uint8_t *bytes;
  const uint32_t *sizes;
  size_t size;
};

enum {
  RELIABLE_PIPE_FULL = 1,
  RELIABLE_PIPE_ENDED = 2,
  RELIABLE_PIPE_LINGERS = 4,
  RELIABLE_PIPE_UPS = 8,   /* shift: how many messages */
  RELIABLE_PIPE_DOWNS = 32 /* shift: how many datagrams */
};

/* NULL: no memory, or an mtu that cannot be.  `first`: the first number, see reliable_config. */
struct reliable_pipe *reliable_pipe_open(int server, uint32_t mtu, double give_up, uint32_t connection,
                                         uint64_t first, size_t message_max, struct reliable_held *held);
void reliable_pipe_close(struct reliable_pipe *p);

/* Each returns what the enumeration above describes, or -1: it cannot go on, and reliable_pipe_why() says why.
 * -2: it is at work in another thread. */
int64_t reliable_pipe_start(struct reliable_pipe *p, double now);
int64_t reliable_pipe_down(struct reliable_pipe *p, const uint8_t *message, size_t size, double now);
int64_t reliable_pipe_down_end(struct reliable_pipe *p, double now);
int64_t reliable_pipe_up(struct reliable_pipe *p, const uint8_t *datagram, size_t size, double now);
int64_t reliable_pipe_tick(struct reliable_pipe *p, double now);
/* What was given has been taken: its memory may go. */
void reliable_pipe_taken(struct reliable_pipe *p);
void reliable_pipe_drop(struct reliable_pipe *p); /* see reliable_drop() */
double reliable_pipe_begun_at(const struct reliable_pipe *p);
int reliable_pipe_answered(const struct reliable_pipe *p);
const char *reliable_pipe_why(const struct reliable_pipe *p);

#endif
