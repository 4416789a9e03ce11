/* The `unix` implementation: a unix stream socket takes the TCP socket's place behind the descriptor.
 *
 * The server's side makes a socketpair when it finds the client's claim and posts one end to the client
 * through the link's mailbox (made by the agent with the link).  Each direction then switches at an exact
 * byte, as with a ring; once what the other end had given to TCP has been read, the descriptor itself is
 * exchanged, and from then on every call on it is the kernel's own.  The TCP socket stays, hidden, for its
 * addresses and options. */
#ifndef BERTHA_UNIXPAIR_H
#define BERTHA_UNIXPAIR_H

#include "shim.h"

#include <limits.h>

#define UNIX_LATER UINT32_MAX        /* the mailbox is full: at the next call on the connection */
uint32_t unix_offer(struct conn *c); /* server: 0, or why not */
/* Client, before its claim: what the exchange will need, and an end that was made ahead, if there is one.  0, or why not. */
uint32_t unix_prepare(struct conn *c);
bool unix_letter_waits(const struct conn *c); /* client: another thread has what was kept for its end */
bool unix_collect(struct conn *c);            /* client: its end of the connection; false: not there (yet) */
/* While the other end's bytes may come by TCP or by the unix socket: sleeps until there are some.  0: look again,
 * 1: wait in the kernel's call itself; -EAGAIN at the deadline (bertha_now_ns() terms, -1: none), -EINTR. */
int unix_wait(struct conn *c, int fd, int64_t deadline);
ssize_t unix_recv(struct conn *c, int fd, const struct iovec *iov, int count, int flags);
ssize_t unix_send(struct conn *c, int fd, const struct iovec *iov, int count, int flags);
/* The descriptor to send on, after switching if that can be done now; it stays open until the end.  `tcp`: what goes
 * there counts as sent before the switch.  -1: EAGAIN, this very thread is in the middle of it (a signal handler). */
struct unix_tx {
  bool tcp;
  bool counted;
  uint32_t life; /* by the end, the record may be another connection's */
};
int unix_tx_begin(struct conn *c, int fd, struct unix_tx *t);
void unix_tx_end(struct conn *c, const struct unix_tx *t, ssize_t sent);
/* With the rx lock held: `end` (taken over) stands for the connection from now on. */
bool unix_put(struct conn *c, int fd, int end);
void unix_replace(struct conn *c, int end); /* another one in its place, once there is one */
bool unix_settle(struct conn *c, int fd);   /* exchanges the descriptor if it can be: true when it is */
bool unix_swapped(const struct conn *c);
/* unixfirst.c.  True: the exchange can wait, the caller receives from the other socket as it is. */
bool unix_stays_there(const struct conn *c);
#define UNIX_ELSEWHERE (-SSIZE_MAX)
/* One call on the other socket, where nothing else is to be done; UNIX_ELSEWHERE: nothing was done.  Else as recv()
 * and send(). */
ssize_t unix_first_recv(struct conn *c, int fd, void *to, size_t size, int flags);
ssize_t unix_first_send(struct conn *c, const void *from, size_t size, int flags);
/* The client's promise (layout.h).  Server, having attached: holds it to it.  Client: false when the server has done so, and
 * so has attached; otherwise there is none any more. */
void unix_hold_to(struct conn *c);
bool unix_take_back(struct conn *c);
/* A unix socket stands, or is to stand, in the TCP socket's place; with a carrier there may be a ring besides (hop.h). */
static inline bool unix_stands(const struct conn *c) {
  return conn_kind(c) == BERTHA_CONN_UNIX || (conn_flags(c) & CONN_CARRIED);
}
/* With the rx lock held, before the exchange: looks into the unix socket; the first `skip` bytes' place is taken. */
ssize_t unix_look(struct conn *c, const struct iovec *iov, int count, size_t skip);
int unix_unread(struct conn *c, int fd);       /* before the exchange: what FIONREAD is to say */
int unix_tcp_fd(const struct conn *c, int fd); /* where addresses and TCP's options are asked */
void unix_shutdown(struct conn *c, int fd, int how);
void unix_nonblock(struct conn *c, bool on);
void unix_drop(struct conn *c);   /* an offer that came to nothing */
void unix_forget(struct conn *c); /* this process has closed its last descriptor of it */
void unix_closed(struct conn *c); /* after the last one has been closed */
void unix_fd_moved(int from, int to);

/* A unix socket that is not read any more makes its other end's sends fail, which TCP's go on (shutdown(2)): who shuts it
 * says so in the slot beforehand, and the other end sends to nowhere. */
static inline bool unix_unheard(const struct conn *c) {
  return c->slot != NULL && !(conn_flags(c) & CONN_CARRIED) &&
         atomic_load_explicit(&conn_tx(c)->want_kernel, memory_order_acquire) == BERTHA_WANT_KERNEL;
}
void unix_hears_no_more(struct conn *c);   /* before the shutdown */
void unix_signals(struct conn *c, int fd); /* before the program asks for SIGIO */
void unix_undo(struct conn *c);            /* connect() to nowhere: the TCP socket is back in its place */
void unix_last_close(struct conn *c);      /* before the kernel's close */
bool unix_was_reset(struct conn *c);       /* true, once: the end that was read is a reset (SO_LINGER) */
/* tcp(7), MSG_TRUNC: as recv(), and the bytes go nowhere; a count or -errno. */
ssize_t unix_discard(int fd, size_t want, int flags);

#endif
