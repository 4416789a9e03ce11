/* The serving half of every measurement of ours: server MODE TARGET [--size N] [--nodelay 1] [--processes P]
 *                                                           [--server-first 1]
 *
 *   echo  one connection after the other: reads requests of --size bytes, answers each with as many;
 *         with --server-first 1 it sends as many before it reads any
 *   once  accepts, answers one request of --size bytes (0: none), closes: for set-up rates
 *   hold  any number of connections at once, by epoll: echoes what comes
 *
 * With P > 1 as many processes accept from the same listening socket, as in many a prefork server.
 * Says "ready" when it listens; ends at SIGTERM.
 */
#include "common.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>

static void serve_echo(int listener, size_t size, int nodelay, int server_first) {
  char *buf = calloc(1, size + 1);
  for (;;) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) {
      fail("accept");
    }
    if (nodelay) {
      int one = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    if (server_first) {
      send_all(fd, buf, size);
    }
    while (recv_all(fd, buf, size)) {
      send_all(fd, buf, size);
    }
    close(fd);
  }
}

static void serve_once(int listener, size_t size) {
  char *buf = malloc(size + 1);
  for (;;) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) {
      fail("accept");
    }
    if (size > 0 && recv_all(fd, buf, size)) {
      send_all(fd, buf, size);
    }
    close(fd);
  }
}

static void serve_hold(int listener) {
  static char buf[65536];
  struct epoll_event events[64];
  struct epoll_event want = {.events = EPOLLIN, .data.fd = listener};
  int ep = epoll_create1(EPOLL_CLOEXEC);
  fcntl(listener, F_SETFL, O_NONBLOCK);
  if (ep < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, listener, &want) != 0) {
    fail("epoll");
  }
  for (;;) {
    int n = epoll_wait(ep, events, 64, -1);
    if (n < 0 && errno != EINTR) {
      fail("epoll_wait");
    }
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      if (fd == listener) {
        int got = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (got < 0) {
          if (errno != EAGAIN && errno != ECONNABORTED) {
            fail("accept");
          }
          continue;
        }
        want.data.fd = got;
        if (epoll_ctl(ep, EPOLL_CTL_ADD, got, &want) != 0) {
          fail("epoll_ctl");
        }
        continue;
      }
      ssize_t have = recv(fd, buf, sizeof buf, 0);
      if (have <= 0) {
        close(fd);
        continue;
      }
      send_all(fd, buf, (size_t)have);
    }
  }
}

static void leave(int sig) {
  (void)sig;
  _exit(0);
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: server echo|once|hold TARGET [--size N] [--nodelay 1] [--processes P]\n");
    return 2;
  }
  struct target t = parse_target(argv[2]);
  size_t size = number(argc, argv, "--size", "64");
  int nodelay = (int)number(argc, argv, "--nodelay", "0") && t.family != AF_UNIX;
  struct sigaction on_term = {.sa_handler = leave};
  sigaction(SIGTERM, &on_term, NULL);
  int listener = listen_at(&t, 4096);
  printf("ready\n");
  fflush(stdout);
  for (size_t p = 1; p < number(argc, argv, "--processes", "1"); p++) {
    pid_t child = fork();
    if (child < 0) {
      fail("fork");
    }
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGTERM);
      break;
    }
  }
  if (strcmp(argv[1], "echo") == 0) {
    serve_echo(listener, size, nodelay, (int)number(argc, argv, "--server-first", "0"));
  } else if (strcmp(argv[1], "once") == 0) {
    serve_once(listener, size);
  } else if (strcmp(argv[1], "hold") == 0) {
    serve_hold(listener);
  }
  fprintf(stderr, "%s: not a mode\n", argv[1]);
  return 2;
}
