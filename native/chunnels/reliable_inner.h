/* What the three files of reliable share (reliable.h is for everybody else). */
#ifndef BERTHA_RELIABLE_INNER_H
#define BERTHA_RELIABLE_INNER_H

#include "../carrier/buffer.h"
#include "reliable.h"

enum { RELIABLE_DATA = 1, RELIABLE_ACK = 2, RELIABLE_HELLO = 3 };
enum { RELIABLE_MORE = 1, RELIABLE_END = 2 };
enum { RELIABLE_LATER = 3 };   /* so many sent later must have arrived before something counts as lost */
enum { RELIABLE_ROOM = 4096 }; /* bytes that a buffer begins with; one in which nothing is has none */
enum { RELIABLE_PIECE = 48 };  /* bytes that are counted for one of those that are early, besides its own */

/* Numbers are counted on in 64 bits; the wire has the last 32 of them. */
struct packet {   /* sent and not yet acknowledged */
  uint64_t at;    /* of its payload, in `bytes` */
  uint64_t order; /* of its last sending, among all sendings */
  double sent_at;
  uint32_t size;
  uint8_t flags;
  bool again;   /* it was sent more than once */
  bool arrived; /* selectively acknowledged */
  bool lost;    /* to be sent again */
};

struct waiting { /* a message, or what is left of it to be sent */
  size_t left;
  bool end;
};

struct early { /* came before what is wanted */
  uint8_t *payload;
  uint32_t size;
  uint8_t flags;
  bool there;
};

struct reliable {
  bool server;
  bool known; /* the connection's number is */
  uint32_t connection;
  uint32_t payload; /* bytes of a datagram at most */
  size_t message_max;
  struct reliable_held *held;
  uint64_t first;
  double give_up;
  double now;
  double heard;
  char why[120];

  /* sender: `packets` and `waiting` are rings, by number; `bytes` is one, by position */
  struct packet *packets;
  uint32_t packet_room;
  uint64_t acknowledged; /* the next number that the other end wants */
  uint64_t next;
  struct waiting *waiting;
  uint32_t waiting_room;
  uint64_t waiting_first, waiting_past;
  size_t parts; /* datagrams that those will be */
  uint8_t *bytes;
  size_t byte_room;
  uint64_t byte_first, byte_past, byte_next; /* unacknowledged from, until; not yet sent from */
  uint32_t outstanding;                      /* neither arrived nor lost */
  uint32_t lost;
  uint64_t seek; /* no lost one has a smaller number */
  uint64_t sendings;
  uint64_t latest[RELIABLE_LATER]; /* the last sendings that have arrived, as far as is known, in order */
  uint64_t recover;                /* in recovery until this number is acknowledged */
  uint32_t room;                   /* the other end's, datagrams */
  double window, threshold;
  double rto, base, srtt, var; /* srtt below 0: no sample yet */
  double expired_at;
  double timer; /* times: INFINITY is never */

  /* receiver */
  uint64_t wanted;
  struct early *early; /* a ring of RELIABLE_WINDOW, by number */
  uint32_t early_count;
  size_t early_bytes;
  uint64_t early_past; /* the highest of them, and one */
  struct buffer up;    /* whole messages, and the beginning of one */
  size_t *sizes;       /* of the whole ones */
  uint32_t size_room, size_first, size_past;
  size_t begun;   /* bytes of the one that is not whole */
  size_t counted; /* what is counted for it in `held`; 0: there is none */
  double begun_at;
  size_t given; /* bytes of the one that was taken last, which may go */
  bool ended;

  bool over; /* the program sends no more */
  bool resting;
  bool lingers;
  double rest_until;
  double hello_at, ack_at;
  uint32_t unacknowledged;
  bool say_hello, say_ack_first, judge_ack, at_once, say_ack; /* to be said by reliable_datagram() */
};

/* Always false; the first reason stays. */
bool reliable_fail(struct reliable *r, const char *why);

/* ---- reliable_send.c: what is sent and not yet acknowledged ---- */
void reliable_sender_init(struct reliable *r);
void reliable_sender_free(struct reliable *r);
bool reliable_sent_all(const struct reliable *r);
/* A message, or the end, behind those that wait. */
bool reliable_wait(struct reliable *r, const uint8_t *message, size_t size, bool end);
/* What is to be sent next, and its number: lost ones first.  NULL: nothing may be sent now. */
const struct packet *reliable_due(struct reliable *r, uint64_t *number);
void reliable_payload(const struct reliable *r, const struct packet *p, uint8_t *to);
/* Of everything below `upto`, and of `count` ranges from a number to past another; ones that make no sense are ignored. */
void reliable_acknowledge(struct reliable *r, int64_t upto, const int64_t (*ranges)[2], int count);
void reliable_backoff(struct reliable *r); /* nothing came in time */
void reliable_expire(struct reliable *r);  /* the timer has run out */

/* ---- reliable_receive.c: what has come, put in order ---- */
void reliable_receiver_free(struct reliable *r);
/* Sets at_once: the other end had better know soon that something is missing, or came twice.  False: it has failed. */
bool reliable_take(struct reliable *r, int64_t number, uint8_t flags, const uint8_t *payload, size_t size);
/* Writes what has come beyond what is wanted, 8 bytes each; how many. */
uint8_t reliable_ranges(const struct reliable *r, uint8_t *to);

/* No need of libm. */
static inline double reliable_least(double a, double b) {
  return a < b ? a : b;
}

static inline double reliable_most(double a, double b) {
  return a > b ? a : b;
}

static inline void reliable_put32(uint8_t *to, uint64_t value) {
  for (int i = 0; i < 4; i++) {
    to[i] = (uint8_t)(value >> (24 - 8 * i));
  }
}

#endif
