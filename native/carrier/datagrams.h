/* UDP sockets of programs, whose datagrams go through chunnels that are in C (decisions 0009 and 0022).  The twin of
 * bertha_socket/carrier/datagrams.py, peers.py and exchange.py: the same wire, the same limits, the same log; change both.
 *
 * Everything is bounded, and what does not fit is dropped, as UDP does; only a chunnel that sends again makes it whole. */
#ifndef BERTHA_DATAGRAMS_H
#define BERTHA_DATAGRAMS_H

#include "../chunnels/reliable.h"
#include "dgram_chain.h"
#include "envelope.h"
#include "session.h"
#include "timers.h"

enum {
  EXCHANGES_MAX = 4096, /* of one socket */
  UNJUDGED_MAX = 256,   /* of them, those whose plan is not judged yet */
  EACH_MAX = 4,         /* of one other address */
  PLACES_MAX = 4096,    /* plans that are remembered */
  QUEUE_MAX = 1024,     /* datagrams that wait for the program; twice as many wait for the network */
  QUEUE_BYTES = 4 << 20,
  BESIDE_MAX = 64, /* of the program's that wait for the carrier beside, at most */
  STRANGERS_MAX = 1024,
  EARLY_MAX = 32,        /* datagrams that are kept until the agent has judged the plan */
  HELD_EARLY = 64 << 20, /* bytes that all of one socket's exchanges keep of what came before its turn */
  HELD_BEGUN = 32 << 20, /* and of messages that are not whole */
  WAITING_MAX = 1024,    /* datagrams that wait for the chunnels to take them */
  /* Answers to strangers, a second: that a session is not there, or why theirs is none.  What they are told may be longer
   * than what they have said, and nobody knows whether the address is theirs. */
  STRANGERS_RATE = 100,
  BUCKETS_FIRST = 4, /* of other addresses: a power of two */
  DATAGRAMS_NAME_MAX = 80,
  DETAIL_MAX = 396,
};
#define SECOND_NS 1000000000ll

struct place { /* as struct bertha_dgram has it */
  uint8_t addr[16];
  uint32_t scope;
  uint16_t port;
};

struct packet {
  struct packet *next;
  struct place place;
  size_t size;
  uint8_t bytes[];
};
struct queue {
  struct packet *first, *last;
  unsigned count;
  size_t bytes;
};

struct peer {        /* another address */
  struct peer *next; /* in its bucket */
  struct place place;
  uint8_t *plan; /* by which what is sent there goes; NULL: none */
  size_t plan_size;
  uint64_t context;
  uint64_t plan_order;
  struct exchange *exchanges;
  struct exchange *current; /* by which it is answered */
};

enum step { STEP_PENDING, STEP_READY, STEP_FAILED };

struct exchange {        /* with one other carrier, by one plan */
  struct exchange *next; /* of the peer */
  struct exchange *next_asked;
  struct datagrams *owner;
  struct peer *peer;
  struct secrets *secrets;
  struct reliable *chunnel; /* NULL: not yet */
  struct chain chain;       /* above it */
  uint64_t session;
  bool server;
  bool refused; /* the server's carrier has refused the plan itself: another one has to be asked for */
  bool shown;
  bool full;  /* the chunnel wants no more for now */
  bool ended; /* the other end has said that it sends no more */
  enum step step;
  uint8_t *plan;
  size_t plan_size;
  size_t most;    /* bytes of a datagram */
  uint64_t asked; /* number of a question to the agent; 0: none */
  int64_t last, born, reminded;
  int64_t spoke;                /* data of the other end came */
  int64_t hello_at, hello_wait; /* 0: nothing is to be said again */
  int64_t chunnel_at;           /* 0: never */
  struct queue early, waiting;
  struct timer timer;
  char detail[DETAIL_MAX];
};

struct datagrams { /* one carried socket */
  struct datagrams *next, *previous;
  struct datagrams *next_ready;
  bool queued;
  bool over; /* to be closed */
  struct shim *shim;
  uint32_t status_index, life;
  bool server;
  uint32_t mode; /* enum bertha_carrier_mode */
  uint64_t listener;
  int udp, program;
  int family;
  int beside; /* to the carrier that has what is not in C; -1: there is none */
  bool beside_in, beside_out;
  bool beside_full;     /* it wants no more of the program's for now */
  int64_t beside_until; /* it was asked for, and what is for it waits until then */
  struct queue to_beside;
  unsigned beside_own; /* of what is in it: the program's, which waits when this is too much */
  bool udp_in, udp_out, program_in, program_out; /* the kernel said so, and has not said otherwise since */
  int64_t until; /* the program has closed: what is unsaid is said until then; 0: it has not */
  struct peer **buckets;
  unsigned bucket_count, peer_count, exchange_count, unjudged, plans, currents;
  uint64_t plan_last;
  struct exchange *speaking; /* the program spoke to it last */
  struct queue to_program, to_network;
  struct reliable_held held;
  int64_t strangers_at; /* the second in which so many have been answered */
  unsigned strangers_answered;
  /* the log */
  uint8_t *shown; /* a plan, or NULL */
  size_t shown_size;
  char text[sizeof((struct bertha_carrier_status *)0)
                ->chunnels]; /* JSON; empty: nobody has agreed on anything */
  bool passed;               /* something plain */
  bool news;                 /* another text is to be shown */
  char detail[DETAIL_MAX];
  char beside_detail[DETAIL_MAX];
  char left_out[DETAIL_MAX]; /* of the plan that is shown */
  char told[DETAIL_MAX];
  uint32_t told_state;
  int64_t told_at;
  uint64_t kept_out, lost;
  uint8_t (*strangers)[16];
  unsigned stranger_count;
  struct timer tell_timer, linger_timer, agent_timer;
};

/* datagrams.c: the two sockets */
/* Takes both descriptors over. */
void datagrams_carry(struct shim *shim, const struct bertha_carrier_carry *head, int udp, int program);
void datagrams_event(struct datagrams *d, bool network, uint32_t events);
bool datagrams_ready(void); /* somebody has something to do */
void datagrams_run(void);
void datagrams_agent_gone(void);
struct datagrams *datagrams_first(void); /* for tests, both */
void datagrams_close_all(void);
void datagrams_queue(struct datagrams *d);
void datagrams_send(struct datagrams *d, const struct place *to, const uint8_t *data, size_t size);
/* To the program, if there is room; `much`: more than usual.  False: there was none. */
bool datagrams_give(struct datagrams *d, uint16_t kind, const struct place *of, uint64_t value,
                    const uint8_t *data, size_t size, bool much);
bool datagrams_full(const struct datagrams *d);
bool datagrams_connected(const struct datagrams *d);
bool datagrams_busy(const struct datagrams *d);
/* ADDRESS PORT, for the agent's log. */
void datagrams_name(const struct datagrams *d, const struct place *of, char to[DATAGRAMS_NAME_MAX]);
bool datagrams_can_name(const struct datagrams *d, const struct place *of); /* it is of the socket's family */
bool queue_add(struct queue *q, const struct place *place, const uint8_t *head, size_t head_size,
               const uint8_t *data, size_t size);
void queue_drop_first(struct queue *q);
void queue_clear(struct queue *q);

/* dgram_peers.c: other addresses, and what they say */
struct peer *peers_find(const struct datagrams *d, const struct place *place);
struct peer *peers_get(struct datagrams *d, const struct place *place); /* NULL: no memory */
void peers_settle(struct datagrams *d, struct peer *p); /* frees it if nothing is known of it */
void peers_planned(struct datagrams *d, const struct place *place, const uint8_t *plan, size_t size,
                   uint64_t context);
void peers_unplan(struct datagrams *d, struct peer *p);
void peers_network_said(struct datagrams *d, const struct place *from, const uint8_t *data, size_t size);
void peers_program_sent(struct datagrams *d, const struct place *to, const uint8_t *data, size_t size);
void peers_current(struct datagrams *d, struct peer *p, struct exchange *x); /* NULL: none */
void peers_free(struct datagrams *d);
bool peers_may_answer(struct datagrams *d); /* one more stranger in this second */
/* The only other end with which there are exchanges, or NULL. */
const struct peer *peers_only(const struct datagrams *d);
bool peers_unsaid(const struct datagrams *d);

/* exchange.c */
/* The client's, with the peer's plan; may have failed and be gone at once. */
void exchange_open(struct datagrams *d, struct peer *p);
/* A client that is not known yet; takes its secrets over. */
void exchange_greeted(struct datagrams *d, struct peer *p, uint64_t session, const uint8_t *plan, size_t size,
                      struct secrets *k);
/* Each of these may free it. */
void exchange_network(struct exchange *x, const struct envelope *came);
void exchange_program(struct exchange *x, const uint8_t *data, size_t size);
void exchange_judged(struct exchange *x, const char *why); /* NULL: yes */
void exchange_drop(struct exchange *x);
bool exchange_unsaid(const struct exchange *x); /* something is still to be said, or said again */
/* When the message began that is coming in; INFINITY: there is none. */
double exchange_begun_at(const struct exchange *x);
void exchange_fail(struct exchange *x, const char *why);
/* Of one of which nobody knows whether it is where it says that it is: nothing that was sent there was acknowledged. */
int64_t exchange_unproven(const struct exchange *x, int64_t now);
int64_t exchange_silent(const struct exchange *x, int64_t now);
bool exchange_runs(const uint8_t *plan, size_t size, bool server); /* whether its chunnels are all here */
void exchange_verdict(uint64_t id, bool good, const char *why);
void exchange_agent_gone(void);

/* dgram_beside.c: the carrier that has what is not in C */
void beside_begin(struct datagrams *d, int fd); /* takes the descriptor over */
void beside_end(struct datagrams *d);
void beside_event(struct datagrams *d, uint32_t events);
void beside_run(struct datagrams *d);
bool beside_has_more(const struct datagrams *d);
/* True: it has it, or will have it when it is there.  `want`: it is asked for if it is not. */
bool beside_network(struct datagrams *d, const struct place *from, const uint8_t *data, size_t size,
                    bool want);
bool beside_program(struct datagrams *d, uint16_t kind, const struct place *to, uint64_t value,
                    const uint8_t *data, size_t size);
void beside_closed(struct datagrams *d); /* the program has */

/* dgram_log.c */
void dgram_text(struct datagrams *d, const char *text, size_t size, const char *detail, size_t detail_size);
void dgram_show(struct datagrams *d, const uint8_t *plan, size_t size, bool server);
void dgram_tell(struct datagrams *d);
void dgram_tell_soon(struct datagrams *d);
void dgram_stranger(struct datagrams *d, const struct place *who); /* was kept out */
void dgram_detail(struct datagrams *d, const char *why);

#endif
