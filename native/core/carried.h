/* Connections with chunnels: the TCP socket goes to a carrier (carrier/carrier.h), and a unix socket whose other end
 * the carrier has takes its place behind the descriptor.  From then on every call is the kernel's own, or a
 * ring's that has the unix socket beneath (hop.h).
 *
 * A client asks the agent for a plan before it connects, once for each destination; a server gives what it accepts to
 * the carrier if its listener's chunnels say so. */
#ifndef BERTHA_CARRIED_H
#define BERTHA_CARRIED_H

#include "shim.h"

enum carried_verdict {
  CARRIED_NOT,     /* no chunnels */
  CARRIED_PLAN,    /* the connection is marked: carried_connecting() comes after the kernel's connect() */
  CARRIED_REFUSED, /* a required chunnel cannot be had: connect() fails */
};
/* Before the kernel's connect().  May ask the agent, which may ask another host's: bounded by some 300 ms, once. */
enum carried_verdict carried_plan(struct conn *c, int fd, const struct sockaddr *to);
void carried_connecting(struct conn *c, int fd);
/* Gives the connection to its carrier once it is established: true when the descriptor is a unix socket now. */
bool carried_settle(struct conn *c, int fd);
/* The same for a call that needs it: waits as the call would.  1: it is; 0: the TCP socket has an error to tell; or
 * -errno. */
int carried_await(struct conn *c, int fd, int flags, int64_t timeout_ns);
/* A connection that was just accepted: true when a carrier has it, or nobody will. */
bool carried_accepted(struct conn *c, int fd, struct listener *l);
/* Nobody can carry it, and its chunnels are required: the program sees a connection that was reset. */
void carried_refuse(struct conn *c, int fd, uint32_t why);
void carried_reset(int tcp); /* sends a RST, whoever else has the socket */
/* In this thread, from now on: connections that it makes get no chunnels here, for whoever makes them runs their chunnels
 * himself.  Returns what was before. */
bool carried_own(bool own);
bool carried_owns(void);
/* For the log: the chunnels that the program itself runs on its connection, a JSON array, and what was left out. */
bool carried_name(struct conn *c, const char *chunnels, const char *left_out);
/* The last descriptor is closed: a plan that the server has refused is not tried again. */
void carried_ended(struct conn *c);
/* For the log, at the end: NULL where the carrier said nothing. */
struct bertha_carrier_status;
/* What the agent said of a client's destination that has no chunnels; empty: nothing. */
void carried_why_not(const struct conn *c, char *to, size_t size);
const struct bertha_carrier_status *carried_status(const struct conn *c);
/* The end was read of a socketpair to a carrier: true, once, if that is not the stream's, for the carrier has not said so. */
bool carried_cut(struct conn *c);
/* For core/dgram.c.  False: nobody answers.  `plan` is a copy. */
struct carried_answer {
  uint32_t verdict; /* enum bertha_verdict */
  uint32_t carrier; /* BERTHA_CARRIER_* */
  uint32_t size;
  uint64_t context;
  int64_t until;
  uint8_t plan[8192];
  char detail[400];
};
bool carried_ask_datagrams(const uint8_t addr[16], uint16_t port, int family, int fd,
                           struct carried_answer *answer);
void carried_refused_datagrams(const uint8_t addr[16], uint16_t port);
/* Gives a UDP socket to the carrier that c->carrier names; `listener`: 0 for a client's.  With the rx lock held, unless
 * `again`: the carrier of before is gone. */
bool carried_datagrams(struct conn *c, int fd, uint64_t listener, bool required, bool again);
/* Gives one that the native carrier has to another one as well, for the chunnels that are not in C. */
bool carried_beside(struct conn *c, int fd, uint64_t listener, bool required, uint32_t which);
bool carried_is_private(const uint8_t addr[16]);
void carried_fd_moved(int from, int to);
void carried_after_fork(void);

#endif
