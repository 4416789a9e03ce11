/* One carried connection: program <-> chunnels <-> TCP.  The beginning (who is there, which plan) is in greeting.c. */
#ifndef BERTHA_SESSION_H
#define BERTHA_SESSION_H

#include "../chunnels/chunnel.h"
#include "carrier.h"

struct conn;
struct datagrams;

enum { STAGES_MAX = 34, NONCE_SIZE = 16, PREAMBLE_MAX = 16384 };

enum { SECRETS_USERS = 65 /* agent/listeners.py */ };
#define NO_UID UINT64_MAX

struct shim { /* a program that gives us connections */
  struct shim *next;
  int fd;
  uint64_t uid; /* whose program it is, by the agent's word; NO_UID: it is not said */
  unsigned sessions;
  struct bertha_carrier_status *statuses;
  size_t status_count;
  struct rings *rings[BERTHA_CARRIER_LINKS];
  unsigned ring_count;
};

struct secrets { /* of one listener, of a client's rule, or (0) of everybody */
  struct secrets *next;
  uint64_t listener;
  char *certificate, *key, *ca; /* PEM */
  bool has_cluster_key;
  uint8_t cluster_key[64];
  size_t cluster_key_size;
  uint32_t uids[SECRETS_USERS]; /* whose programs may have them, besides root's */
  unsigned uid_count;
  unsigned users; /* sessions */
  bool replaced;  /* by newer ones: goes with its last session */
};

struct session {
  struct session *next, *previous; /* of all */
  struct session *next_ready;      /* of those that have something to do */
  bool queued;
  struct shim *shim;
  uint32_t status_index;
  uint32_t life;
  bool server;
  uint32_t mode;  /* enum bertha_carrier_mode */
  uint32_t state; /* enum bertha_carrier_state */
  uint64_t listener;
  struct secrets *secrets; /* NULL: none */
  int tcp, program;
  struct conn
      *ring; /* the program's end is reached by it, and `program` is beneath it; NULL: by that alone */
  struct rings *rings;
  uint32_t slot;
  bool due; /* the program is to be woken */
  struct session *next_due;
  bool tcp_in, tcp_out, program_in, program_out; /* the kernel said so, and has not said otherwise since */
  /* An end is there, or an urgent mark, at which reads stop: a short read does not mean that nothing is left. */
  bool tcp_more, program_more;
  bool tcp_error;              /* the kernel has one to tell */
  bool tcp_shut, program_shut; /* our writing ends */
  bool program_gone;
  bool aborted; /* it closed with bytes unread: to be reset */
  uint8_t *plan;
  size_t plan_size;
  uint8_t nonce[NONCE_SIZE];
  int64_t until; /* when the greeting must be over, ns; 0: it is */
  int64_t silent_until;
  uint64_t asked; /* number of a question to the agent; 0: none */
  struct session *next_asking;
  bool sniffed;
  bool up_open;         /* the greeting is over: what comes from the network is for the chunnels */
  bool parting;         /* refused: only what is to be sent is still sent */
  bool lent;            /* the program has been offered to go on by itself, and may be doing so (lend.c) */
  bool unwatched;       /* and the TCP socket is not in our set */
  int lent_error;       /* what the socket had to tell the program, an errno; 0: nothing */
  const char *lent_why; /* it cannot go on; NULL: it can */
  /* Stage 0 is the network's.  Stage i reads down[i + 1] and writes down[i]; reads up[i] and writes up[i + 1]. */
  unsigned base; /* stages below the greeting: 1 where TLS comes first */
  unsigned stages;
  unsigned warm; /* its place in warm.c + 1; 0: none */
  struct chunnel *stage[STAGES_MAX];
  struct buffer down[STAGES_MAX + 1], up[STAGES_MAX + 1];
  bool down_end[STAGES_MAX + 1], up_end[STAGES_MAX + 1]; /* no more will come into it */
};

/* session.c */
void session_run(struct session *s); /* may free it */
void session_fail(struct session *s, const char *why);
void session_state(struct session *s, uint32_t state, const char *why);
bool session_push(struct session *s, const char *type, const char *wire, const struct pack_value *args,
                  const char **why);
void session_free(struct session *s);
void session_reset(int tcp);
void session_end(int tcp);             /* sends a FIN */
void session_ended(struct session *s); /* the program is about to be told of the end */

/* stage.c */
bool stage_known(const char *type);
struct chunnel *stage_open(const char *type, const char *wire, const struct pack_value *args, bool server,
                           const struct secrets *secrets, const char **why); /* NULL, and why */

/* greeting.c: false: it has failed, `*why` says how. */
bool greeting_begin(struct session *s, const char **why);
bool greeting_sniff(struct session *s, const char **why);
bool greeting_read(struct session *s, const char **why);
bool greeting_verdict(struct session *s, bool good, const char *reason, const char **why);

/* plan.c */
bool plan_stages(struct session *s, bool outer, const char **why); /* pushes what runs at this end */
bool plan_tls_first(const uint8_t *plan, size_t size);
struct plan_chunnel { /* as one end has it */
  char type[64], wire[64];
  char implementation[64]; /* empty: it does not run there */
  struct pack_value args;  /* a map */
};
/* Chunnel number `i`, from the application downwards; false: there are not so many, or this is no plan. */
bool plan_chunnel(const uint8_t *plan, size_t size, bool server, unsigned i, struct plan_chunnel *c);
/* JSON, for the log: what both ends run, and where this one does. */
void plan_text(const uint8_t *plan, size_t size, bool at_server, char *to, size_t room);
/* What was preferred and could not be had, and why, in one line; empty: nothing was left out. */
void plan_left_out(const uint8_t *plan, size_t size, char *to, size_t room);

/* lend.c: the program seals and opens itself */
void lend_offer(struct session *s); /* if it can be, and the program would take it; with nothing to do */
bool lend_back(struct session *s);  /* false: the program has the turn, and nothing is to be done here */

/* rings.c: the programs' links (core/hop.h) */
bool rings_init(void);
/* Takes both descriptors over. */
bool rings_add(struct shim *shim, uint32_t number, uint32_t index, int fd, int bell, uint32_t spin_us);
int64_t rings_spin_bound(void);     /* ns; 0: not to look before sleeping */
void rings_drop(struct shim *shim); /* its sessions have ended */
bool rings_open(struct session *s, struct shim *shim, uint32_t number, uint32_t slot);
void rings_close(struct session *s);
void rings_event(struct session *s, uint32_t events);
void rings_rung(struct rings *r);
void rings_collect(void);   /* queues the sessions whose programs have done something */
bool rings_may_sleep(void); /* arms; false: there is something to do */
void rings_awake(void);
void rings_ring(void); /* wakes the programs for which something was done */
ssize_t program_recv(struct session *s, void *to, size_t room);
ssize_t program_send(struct session *s, const void *from, size_t size);
void program_end(struct session *s); /* no more will be sent to it */

/* trust.c: secrets, and plans that the agent has found good */
/* Of a listener, or of a client's rule, for a program of that user's; to be given back.  A listener that has none of its
 * own has everybody's; a client's number that is not known here, or not its user's, means certificates that are not: with
 * those of others it is not served. */
struct secrets *trust_secrets(uint64_t listener, bool server, uint64_t uid);
/* Whether a program of that user's may serve there: who names a listener need not have it.  `*why`: else. */
bool trust_serves(uint64_t listener, uint64_t uid, const char **why);
void trust_give_back(struct secrets *k);
void trust_learn(const struct pack_value *message);
bool trust_knows(uint64_t listener, const uint8_t *plan, size_t size, bool agent);
uint64_t trust_salt(void); /* something that strangers do not know, never 0 */
void trust_remember(uint64_t listener, const uint8_t *plan, size_t size, bool good);

/* unplanned.c: why clients come without a plan */
enum { UNPLANNED_MAX = 512 /* agent/omissions.py */ };
void unplanned_learn(const struct pack_value *message);
/* Of who is at the other end of that socket; empty: nothing is known. */
void unplanned_why(uint64_t listener, int tcp, char *to, size_t room);

/* warm.c: who keeps buffers while there is nothing in them */
void warm_add(struct session *s);
void warm_forget(struct session *s);
bool warm_any(void);
void warm_cool(void); /* nobody spoke for a while */

/* receive.c */
enum { CARRIER_FDS_MAX = 4 };
/* The size of a message, 0: the end, or one that is longer than `room` (its descriptors are still the caller's), -1: none
 * now.  `*cut`: there was no room for its descriptors in this process. */
ssize_t carrier_receive(int from, void *to, size_t room, int fds[CARRIER_FDS_MAX], int *count, bool *cut);

/* awake.c */
struct epoll_event;
/* epoll's events; 0: there are none, and nothing that `something` finds, or there is that. */
int awake_look(int poller, struct epoll_event *events, int most, bool (*something)(void));

/* ask.c */
/* Asks the agent: may this plan run?  The question's number; 0: there is no agent, or it does not read. */
uint64_t carrier_ask(uint64_t listener, const uint8_t *plan, size_t size, const char *peer);
bool carrier_ask_session(struct session *s);
struct session *carrier_asked(uint64_t number); /* one of those that wait for that answer; NULL: none */
void carrier_unanswered(void);                  /* there is no agent any more */
void carrier_answered(struct session *s);       /* it waits no more */

/* nobody.c */
void carrier_drop_privileges(void);

/* control.c */
void control_begin(int fd);
int carrier_control(void); /* -1: there is no agent */
bool carrier_has_agent(void);
void control_speaks(void); /* reads all that has come */
bool control_behind(
    void); /* the agent has more to say than there was room for: no connection is taken before */
bool control_catch_up(void); /* reads, and waits a little; false: there is no agent any more */

/* main.c */
struct stat;
void carrier_new_shim(int fd, uint64_t uid);
void carrier_close_all(const int *fds, int count);
bool carrier_sealed(int fd, struct stat *st); /* memory of this size, which will not be less */
int64_t carrier_now(void);                    /* ns */
void carrier_queue(struct session *s);
/* Somebody has something of a program's; the program's memory is kept until he lets go. */
void carrier_hold(struct shim *shim);
void carrier_let_go(struct shim *shim);
bool carrier_watch_beside(struct datagrams *d, int fd);
bool carrier_watch_datagrams(struct datagrams *d, int udp, int program);
bool carrier_watch_bell(int fd, struct rings *who);
void carrier_unwatch(int fd);
bool carrier_watch_tcp(struct session *s,
                       bool again);         /* `again`: it is watched, and is to tell of what is there */
void carrier_watch_room(struct session *s); /* of the program's socketpair */
void carrier_forget(struct session *s);

#endif
