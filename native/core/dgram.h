/* UDP sockets whose datagrams have chunnels: a carrier has the socket, and the end of a SOCK_SEQPACKET pair stands behind
 * the descriptor (carrier/carrier.h: struct bertha_dgram).  Decision 0009.
 *
 * A socket comes here when it is bound to a port for which the policy has a rule with chunnels, or when its first
 * datagram (or its connect()) is for an address whose agent says so.  All others are the kernel's, as before. */
#ifndef BERTHA_DGRAM_H
#define BERTHA_DGRAM_H

#include "conn.h"

#ifndef UDP_SEGMENT /* netinet/udp.h of glibc 2.28 */
#define UDP_SEGMENT 103
#endif

/* From socket(): 0 when nothing is to be known of it. */
enum dgram_state { DGRAM_NOT = 0, DGRAM_FRESH = 1, DGRAM_PLAIN = 2 };
extern uint8_t dgram_states[];
void dgram_after_fork(void);
void local_never(int fd, bool never); /* local.h */
void local_sends(int fd);             /* before the kernel sends by itself what nobody here counts */
extern _Atomic uint32_t local_count;  /* of sockets whose datagrams may pass by memory, in this process */
extern _Atomic uint32_t
    local_stir; /* how often something was sent by the kernel, which may be for one of them */
static inline void dgram_made(int fd, bool udp) {
  if (LIKELY((unsigned)fd < BERTHA_FDS) && UNLIKELY(dgram_states[fd] != DGRAM_NOT || udp)) {
    local_never(fd, false);
    dgram_states[fd] = udp ? DGRAM_FRESH : DGRAM_NOT;
  }
}

/* The carried socket behind a descriptor, or NULL. */
static inline struct conn *dgram_of(int fd) {
  struct conn *c = conn_of(fd);
  return UNLIKELY(c != NULL && (conn_flags(c) & CONN_DGRAM)) ? c : NULL;
}

/* Around bind(), connect() and the sending calls: 0, or the errno that the program is to see. */
int dgram_binding(int fd, const struct sockaddr *address, socklen_t size);
int dgram_bound(int fd, const struct sockaddr *address, socklen_t size);
int dgram_connecting(int fd, const struct sockaddr *address, socklen_t size);
int dgram_connected(int fd, const struct sockaddr *address, socklen_t size);
int dgram_first_send(int fd, const struct sockaddr *to, socklen_t size);
/* False for nearly everything: only a UDP socket before its first datagram, or where a policy says so. */
static inline bool dgram_may_begin(int fd, const struct sockaddr *to) {
  return UNLIKELY((unsigned)fd < BERTHA_FDS && dgram_states[fd] != DGRAM_NOT) && to != NULL;
}

/* On a carried socket.  Bytes, or -errno; `msg`: address and control data as in recvmsg(2) and sendmsg(2). */
ssize_t dgram_recv(struct conn *c, int fd, struct msghdr *msg, int flags);
ssize_t dgram_send(struct conn *c, int fd, const struct msghdr *msg, int flags);
struct bertha_dgram;
void dgram_put_name(const struct conn *c, const struct bertha_dgram *head,
                    struct msghdr *msg);  /* its origin */
int64_t dgram_timeout(int fd, int name);  /* SO_RCVTIMEO or SO_SNDTIMEO, ns; 0: none */
int dgram_unread(struct conn *c, int fd); /* FIONREAD: the next one's bytes */
void dgram_closed(struct conn *c);

/* Before the last descriptor of one that was bound is closed: until the carrier has closed it too, so that its port is
 * free. */
void dgram_closing(struct conn *c, int fd);

/* Around the exchange of a socket that may have been used: its duplicates are tracked, and its epoll registrations moved
 * to what takes its place. */
struct dgram_member {
  int epfd;
  int fd;
  struct epoll_event event;
};
struct dgram_late {
  struct dgram_member *members;
  size_t count;
};
void dgram_late_begin(struct dgram_late *late, struct conn *c, int fd);
void dgram_late_end(struct dgram_late *late);

/* Between dgram.c and dgram_io.c. */
int dgram_route(struct conn *c, int fd, const uint8_t addr[16], uint16_t port, uint32_t scope);
void dgram_register_again(struct conn *c, int fd); /* with an agent that has come since */
/* In place of this listener, which an agent that has come since does not know; NULL: it does, or is not asked so soon. */
struct listener *dgram_listed_again(struct listener *l, int fd);
void dgram_reroute(const uint8_t addr[16], uint16_t port); /* the plan was refused: asked for anew */
void dgram_beside(struct conn *c, int fd); /* chunnels are wanted that the native carrier does not have */
bool dgram_revive(struct conn *c, int fd); /* the carrier is gone: another one */

#endif
