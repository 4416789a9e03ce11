/* `reliable`, wire "brel/1": datagrams delivered once, in order (bertha_socket/chunnels/reliable.py has the format).
 *
 * One end of one connection, without I/O: datagrams and messages come in with the time, datagrams and messages are
 * taken out, and it says when it wants to be called again.  Nothing here blocks, and two ends share nothing; one end is
 * for one thread at a time.
 *
 * Retransmission timer: RFC 6298, from 0.2 to 8 s.  Congestion: slow start and congestion avoidance of RFC 5681,
 * recovery as NewReno (RFC 6582); lost is what three that were sent later have overtaken (RFC 9002, 6.1.1), by selective
 * acknowledgements (RFC 2018); one datagram after a time-out.  What comes is a stranger's: it is checked before use, and
 * what makes no sense, or belongs to another connection, is ignored.
 *
 * Memory grows with what is under way and goes when nothing is: RELIABLE_WINDOW datagrams that are not acknowledged, as
 * many that came out of order, but no more than RELIABLE_EARLY_BYTES, RELIABLE_QUEUE_BYTES that wait, one message of
 * message_max that is coming in.  What strangers make several connections hold is counted together (struct reliable_held).
 *
 * The time is seconds of any clock that does not go back.  After each call that gives something the caller takes all
 * that has come of it: reliable_message() and reliable_datagram() until they have nothing. */
#ifndef BERTHA_RELIABLE_H
#define BERTHA_RELIABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
  RELIABLE_HEADER = 14, /* bytes before a datagram's payload */
  RELIABLE_RANGES = 8,  /* that an acknowledgement says at most */
  RELIABLE_ACK_MAX = RELIABLE_HEADER + 8 * RELIABLE_RANGES,
  RELIABLE_MTU_MIN = 64, /* bytes, as the chunnel's argument has them */
  RELIABLE_MTU_MAX = 65507,
  RELIABLE_WINDOW = 1024, /* datagrams */
  RELIABLE_QUEUE = 512,   /* datagrams that wait; more, and the program had better wait as well */
  RELIABLE_MESSAGE_MAX = 16 * 1024 * 1024, /* bytes */
  RELIABLE_QUEUE_BYTES = 4 * RELIABLE_MESSAGE_MAX,
  RELIABLE_EARLY_BYTES = 8 * 1024 * 1024, /* that came out of order */
  RELIABLE_QUEUE_MESSAGES = 64 * 1024,
};

struct reliable;

/* What the connections that share it hold of what has come: what they need memory for besides the bytes is counted too.
 * Of what comes out of order no more than `early_max` is kept, and the rest is as if it were lost.  What is wanted next is
 * always taken: where `begun` grows too large, its owner ends one of them. */
struct reliable_held {
  size_t early;
  size_t begun; /* of messages that are not whole */
  size_t early_max;
};

struct reliable_config {
  bool server;
  uint32_t mtu;        /* the largest datagram with data, bytes, header included: RELIABLE_MTU_MIN to _MAX */
  uint32_t connection; /* its number, which a client chooses at random */
  double give_up;      /* seconds without any answer */
  uint64_t first;      /* the first number in both directions: 1, but in tests of what happens at 2^32 */
  size_t message_max;  /* bytes of a message, in both directions; 0: RELIABLE_MESSAGE_MAX */
  struct reliable_held *held; /* outlives it; NULL: it shares none */
};

/* What there is to know between calls. */
struct reliable_state {
  double deadline; /* when reliable_tick() is wanted; INFINITY: never */
  bool full;       /* the program had better wait */
  bool ended;      /* the other end's end has come, after its last message */
  bool
      lingers; /* this end's end is not yet acknowledged, or its last acknowledgement may be asked for again */
};

/* NULL: no memory, or an mtu that cannot be. */
struct reliable *reliable_open(const struct reliable_config *config);
void reliable_close(struct reliable *r); /* NULL is nothing */
void reliable_drop(struct reliable *r);  /* it is over, and holds nothing of what has come any more */

/* False: the connection cannot go on, reliable_why() says why, and every later call is false too. */
bool reliable_start(struct reliable *r, double now);                                     /* first */
bool reliable_send(struct reliable *r, const uint8_t *message, size_t size, double now); /* of the program */
bool reliable_end(struct reliable *r, double now); /* it sends no more */
bool reliable_came(struct reliable *r, const uint8_t *datagram, size_t size, double now); /* of the network */
bool reliable_tick(struct reliable *r, double now); /* the deadline is there */

/* The next datagram for the network, its size; 0: there is none.  `room`: at least the mtu and RELIABLE_ACK_MAX. */
size_t reliable_datagram(struct reliable *r, uint8_t *to, size_t room);
/* The next message for the program, whose bytes last until the next call; false: there is none. */
bool reliable_message(struct reliable *r, const uint8_t **data, size_t *size);

struct reliable_state reliable_state(const struct reliable *r);
/* When the message began that is not whole yet; INFINITY: there is none. */
double reliable_begun_at(const struct reliable *r);
/* Whether the other end has ever acknowledged anything: it is where it says that it is. */
bool reliable_answered(const struct reliable *r);
const char *reliable_why(const struct reliable *r); /* one line; "" while it goes on */

#endif
