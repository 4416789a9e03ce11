/* bertha-relay: copies between a connection on shared memory and a stream, for a program that knows of no shared memory.
 *
 * Started by the library (core/relay.c), which is loaded into it as well: to this file the connection is a descriptor
 * like any other.  An end is passed on as an end, a reset as a reset.  When the program has closed its end (and not just
 * the half that it sends in), so do we with the connection, which others may have, too. */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>

enum { CONNECTION = 3, PROGRAM = 4, WORD = 5, ROOM = 1 << 16 };

struct way {
  int from;
  int to;
  size_t at;
  size_t end;
  bool ended; /* nothing more comes from there */
  bool reset; /* and then not in order */
  bool over;  /* and that has been passed on */
  char data[ROOM];
};

static struct way out = {.from = CONNECTION, .to = PROGRAM}; /* to the program */
static struct way in = {.from = PROGRAM, .to = CONNECTION};

/* Of the library: how many descriptors, here and in other processes, the connection has. */
static unsigned holders(void) {
  unsigned (*ask)(int) = (unsigned (*)(int))dlsym(RTLD_DEFAULT, "bertha_connection_holders");
  return ask != NULL ? ask(CONNECTION) : 1;
}

/* Others who have the connection wait with what they write until we have passed on what the program wrote before. */
static void tell_what_we_have(int something) {
  static void (*tell)(int, int);
  static bool asked;
  if (!asked) {
    asked = true;
    tell = (void (*)(int, int))dlsym(RTLD_DEFAULT, "bertha_relay_has");
  }
  if (tell != NULL) {
    tell(CONNECTION, something);
  }
}

static const struct linger resets = {.l_onoff = 1};
static struct linger before; /* the connection's */
static bool guarded;

static void set_linger(int fd, const struct linger *to) {
  setsockopt(fd, SOL_SOCKET, SO_LINGER, to, sizeof *to);
}

/* If we are killed, what we have of either end's is lost, and neither end is to take that for the other's end: the kernel
 * resets what it then closes (core/guard.c).  PROGRAM has that from the beginning (core/relay.c).  Where CONNECTION has it
 * already, it is the program's own, or another relay's, who takes it off. */
static void guard(void) {
  socklen_t size = sizeof before;
  guarded = getsockopt(CONNECTION, SOL_SOCKET, SO_LINGER, &before, &size) == 0 &&
            (!before.l_onoff || before.l_linger != 0);
  if (guarded) {
    set_linger(CONNECTION, &resets);
  }
}

static void finish(bool reset) {
  static const struct linger in_order = {.l_onoff = 0};
  if (!reset) {
    set_linger(PROGRAM, &in_order);
  }
  if (reset && holders() == 1) { /* a close by one of several ends nothing (close(2)) */
    set_linger(CONNECTION, &resets);
  } else if (guarded) {
    set_linger(CONNECTION, &before);
  }
  tell_what_we_have(-1);
  close(PROGRAM);
  close(CONNECTION);
  _exit(0);
}

static void diag_address(uint32_t to[4], uint16_t *port, const struct sockaddr_storage *from) {
  if (from->ss_family == AF_INET6) {
    const struct sockaddr_in6 *a = (const void *)from;
    memcpy(to, &a->sin6_addr, 16);
    *port = a->sin6_port;
  } else {
    const struct sockaddr_in *a = (const void *)from;
    memcpy(to, &a->sin_addr, 4);
    *port = a->sin_port;
  }
}

/* Does anybody still have the program's end?  Its socket outlives its last descriptor for a while. */
static bool program_has_it(void) {
  struct sockaddr_storage theirs, ours;
  socklen_t size = sizeof theirs, our_size = sizeof ours;
  if (getpeername(PROGRAM, (struct sockaddr *)&theirs, &size) != 0 ||
      getsockname(PROGRAM, (struct sockaddr *)&ours, &our_size) != 0) {
    return false;
  }
  if (ours.ss_family == AF_UNIX) {
    struct pollfd p = {.fd = PROGRAM};
    return poll(&p, 1, 0) == 0; /* POLLHUP: the other end is closed */
  }
  struct {
    struct nlmsghdr head;
    struct inet_diag_req_v2 body;
  } ask = {.head = {.nlmsg_len = sizeof ask, .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST},
           .body = {.sdiag_family = (uint8_t)ours.ss_family,
                    .sdiag_protocol = IPPROTO_TCP,
                    .idiag_states = ~0u,
                    .id.idiag_cookie = {INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE}}};
  diag_address(ask.body.id.idiag_src, &ask.body.id.idiag_sport, &theirs);
  diag_address(ask.body.id.idiag_dst, &ask.body.id.idiag_dport, &ours);
  union {
    struct nlmsghdr head;
    char space[4096];
  } answer;
  int diag = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
  bool there = true;
  if (diag >= 0 && send(diag, &ask, sizeof ask, 0) == sizeof ask &&
      recv(diag, &answer, sizeof answer, 0) > (ssize_t)sizeof answer.head) {
    const struct inet_diag_msg *said = NLMSG_DATA(&answer.head);
    there = answer.head.nlmsg_type == SOCK_DIAG_BY_FAMILY && said->idiag_inode != 0;
  }
  if (diag >= 0) {
    close(diag);
  }
  return there;
}

/* The kernel sends the end before it lets go of the socket. */
static bool program_closed(void) {
  for (int tries = 0; tries < 3; tries++) {
    if (!program_has_it()) {
      return true;
    }
    poll(NULL, 0, 1);
  }
  return false;
}

static bool wants_more(const struct way *w) {
  return !w->ended && w->end == 0;
}

static void take(struct way *w) {
  if (w == &in) {
    tell_what_we_have(1);
  }
  ssize_t n = recv(w->from, w->data, sizeof w->data, MSG_DONTWAIT);
  if (n > 0) {
    w->end = (size_t)n;
  } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
    w->ended = true;
    w->reset = n < 0;
  }
}

static void give(struct way *w, struct way *other) {
  ssize_t n = send(w->to, w->data + w->at, w->end - w->at, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n > 0) {
    w->at += (size_t)n;
  } else if (n < 0 && errno != EAGAIN &&
             errno != EINTR) { /* nobody reads there: what it has said still counts */
    w->at = w->end;
    w->ended = w->over = true;
    other->reset = true;
  }
  if (w->at == w->end) {
    w->at = w->end = 0;
  }
}

static void pass_end_on(struct way *w) {
  if (!w->ended || w->end > 0 || w->over) {
    return;
  }
  if (w->reset) {
    finish(true);
  }
  if (w == &in && program_closed()) {
    finish(out.end > 0 && !out.over); /* with bytes unread, as the kernel does it */
  }
  w->over = true;
  shutdown(w->to, SHUT_WR);
}

int main(void) {
  char byte;
  sigset_t none;
  signal(SIGPIPE, SIG_IGN);
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  if (read(WORD, &byte, 1) != 1) {
    tell_what_we_have(-1);
    _exit(0); /* it was not needed after all */
  }
  close(WORD);
  guard();
  tell_what_we_have(0);
  while (!in.over || !out.over) {
    struct pollfd at[2] = {{.fd = CONNECTION}, {.fd = PROGRAM}};
    at[0].events = (short)((wants_more(&out) ? POLLIN : 0) | (in.end > 0 ? POLLOUT : 0));
    at[1].events = (short)((wants_more(&in) ? POLLIN : 0) | (out.end > 0 ? POLLOUT : 0));
    for (int i = 0; i < 2; i++) {
      at[i].fd = at[i].events != 0 ? at[i].fd : -1;
    }
    if (poll(at, 2, -1) < 0 && errno != EINTR) {
      finish(true);
    }
    if (wants_more(&out) && at[0].revents != 0) {
      take(&out);
    }
    if (wants_more(&in) && at[1].revents != 0) {
      take(&in);
    }
    if (out.end > 0) {
      give(&out, &in);
    }
    if (in.end > 0) {
      give(&in, &out);
    }
    if (in.end == 0) {
      tell_what_we_have(0);
    }
    pass_end_on(&out);
    pass_end_on(&in);
  }
  finish(false);
}
