/* Echo servers, one for each way to wait: echoes MODE TARGET [--size N] [--processes P]
 *
 *   poll, select  one thread, a call for all connections
 *   threads       a thread for each connection, blocking calls; requests of --size bytes
 *   exclusive     P processes, each with an epoll set of its own; the listener is in all of them, EPOLLEXCLUSIVE
 *   two-sets      every connection in the sets of two threads, who take what they get
 *   nested        four epoll sets within one
 *
 * Says "ready" when it listens; ends at SIGTERM.
 */
#include "common.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/select.h>

enum { MOST = 1024, EVENTS = 64, INNER = 4 };

static int listener;
static size_t size;

static int accepted(void) {
  int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  if (fd < 0 && errno != EAGAIN && errno != ECONNABORTED && errno != EINTR) {
    fail("accept");
  }
  if (fd >= MOST) {
    fprintf(stderr, "echoes: too many connections\n");
    exit(1);
  }
  return fd;
}

/* What there is, back to where it came from; 0: the connection has ended. */
static int echo(int fd) {
  static __thread char buf[65536];
  ssize_t have = recv(fd, buf, sizeof buf, MSG_DONTWAIT);
  if (have > 0) {
    return send(fd, buf, (size_t)have, MSG_NOSIGNAL) == have;
  }
  return have < 0 && (errno == EAGAIN || errno == EINTR);
}

static void by_poll(void) {
  struct pollfd all[MOST] = {{.fd = listener, .events = POLLIN}};
  nfds_t n = 1;
  for (;;) {
    if (poll(all, n, -1) < 0 && errno != EINTR) {
      fail("poll");
    }
    for (nfds_t i = n; i-- > 1;) {
      if (all[i].revents != 0 && !echo(all[i].fd)) {
        close(all[i].fd);
        all[i] = all[--n];
      }
    }
    if (all[0].revents != 0) {
      int fd = accepted();
      if (fd >= 0) {
        all[n++] = (struct pollfd){.fd = fd, .events = POLLIN};
      }
    }
  }
}

static void by_select(void) {
  fd_set all;
  FD_ZERO(&all);
  FD_SET(listener, &all);
  int highest = listener;
  for (;;) {
    fd_set ready = all;
    if (select(highest + 1, &ready, NULL, NULL, NULL) < 0 && errno != EINTR) {
      fail("select");
    }
    for (int fd = 0; fd <= highest; fd++) {
      if (!FD_ISSET(fd, &ready)) {
        continue;
      }
      if (fd == listener) {
        int got = accepted();
        if (got >= 0) {
          FD_SET(got, &all);
          highest = got > highest ? got : highest;
        }
      } else if (!echo(fd)) {
        FD_CLR(fd, &all);
        close(fd);
      }
    }
  }
}

static void *converse(void *argument) {
  int fd = (int)(intptr_t)argument;
  char *buf = malloc(size + 1);
  /* Not send_all and recv_all: a client that leaves with an answer unread resets, and that is no failure. */
  for (size_t got = 0; buf != NULL;) {
    ssize_t n = recv(fd, buf + got, size - got, 0);
    if (n <= 0 || ((got += (size_t)n) == size && send(fd, buf, size, MSG_NOSIGNAL) != (ssize_t)size)) {
      break;
    }
    got %= size;
  }
  free(buf);
  close(fd);
  return NULL;
}

static void started(void *(*function)(void *), void *argument) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, function, argument) != 0) {
    fail("pthread_create");
  }
  pthread_detach(thread);
}

static void by_threads(void) {
  for (;;) {
    int fd = accepted();
    if (fd >= 0) {
      started(converse, (void *)(intptr_t)fd);
    }
  }
}

static int new_set(void) {
  int ep = epoll_create1(EPOLL_CLOEXEC);
  if (ep < 0) {
    fail("epoll_create1");
  }
  return ep;
}

static void add(int ep, int fd, uint32_t events) {
  struct epoll_event want = {.events = events, .data.fd = fd};
  if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &want) != 0 && errno != EEXIST) {
    fail("epoll_ctl");
  }
}

static void by_exclusive(void) {
  struct epoll_event events[EVENTS];
  int ep = new_set();
  fcntl(listener, F_SETFL, O_NONBLOCK);
  add(ep, listener, EPOLLIN | EPOLLEXCLUSIVE);
  for (;;) {
    int n = epoll_wait(ep, events, EVENTS, -1);
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      if (fd == listener) {
        int got = accepted();
        if (got >= 0) {
          add(ep, got, EPOLLIN);
        }
      } else if (!echo(fd)) {
        close(fd);
      }
    }
  }
}

static int sets[2];

/* The one who accepts is the one who closes: the other only looks away. */
static void *one_of_two(void *argument) {
  struct epoll_event events[EVENTS];
  int first = argument == NULL;
  int ep = sets[first ? 0 : 1];
  for (;;) {
    int n = epoll_wait(ep, events, EVENTS, -1);
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      if (fd == listener) {
        int got = accepted();
        if (got >= 0) {
          add(sets[1], got, EPOLLIN);
          add(sets[0], got, EPOLLIN);
        }
      } else if (!echo(fd)) {
        epoll_ctl(ep, EPOLL_CTL_DEL, fd, NULL);
        if (first) {
          close(fd);
        }
      }
    }
  }
  return NULL;
}

static void by_two_sets(void) {
  sets[0] = new_set();
  sets[1] = new_set();
  fcntl(listener, F_SETFL, O_NONBLOCK);
  add(sets[0], listener, EPOLLIN);
  started(one_of_two, sets);
  one_of_two(NULL);
}

static void by_nested(void) {
  struct epoll_event outer_events[INNER + 1], events[EVENTS];
  int outer = new_set(), inner[INNER];
  fcntl(listener, F_SETFL, O_NONBLOCK);
  add(outer, listener, EPOLLIN);
  for (int i = 0; i < INNER; i++) {
    inner[i] = new_set();
    add(outer, inner[i], EPOLLIN);
  }
  for (;;) {
    int n = epoll_wait(outer, outer_events, INNER + 1, -1);
    for (int i = 0; i < n; i++) {
      int which = outer_events[i].data.fd;
      if (which == listener) {
        int got = accepted();
        if (got >= 0) {
          add(inner[got % INNER], got, EPOLLIN);
        }
        continue;
      }
      int m = epoll_wait(which, events, EVENTS, 0);
      for (int j = 0; j < m; j++) {
        if (!echo(events[j].data.fd)) {
          close(events[j].data.fd);
        }
      }
    }
  }
}

static const struct {
  const char *name;
  void (*serve)(void);
} modes[] = {{"poll", by_poll},           {"select", by_select},     {"threads", by_threads},
             {"exclusive", by_exclusive}, {"two-sets", by_two_sets}, {"nested", by_nested}};

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: echoes MODE TARGET [--size N] [--processes P]\n");
    return 2;
  }
  struct target t = parse_target(argv[2]);
  size = number(argc, argv, "--size", "64");
  listener = listen_at(&t, 4096);
  begin_serving(number(argc, argv, "--processes", "1"));
  for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
    if (strcmp(argv[1], modes[i].name) == 0) {
      modes[i].serve();
    }
  }
  fprintf(stderr, "%s: not a mode\n", argv[1]);
  return 2;
}
