/* The serving half of every measurement of ours: server MODE TARGET [--size N] [--nodelay 1] [--processes P]
 *                                                           [--server-first 1]
 *
 *   echo  one connection after the other: reads requests of --size bytes, answers each with as many;
 *         with --server-first 1 it sends as many before it reads any
 *   once  accepts, answers one request of --size bytes (0: none), closes: for set-up rates
 *   hold  any number of connections at once, by epoll: echoes what comes
 *
 * At a "udp:" target each datagram is answered with itself: one blocking call after the other (echo), or by epoll until
 * there is none (hold).  There is one mode more there:
 *
 *   sink  answers only a datagram that begins with 'e', with how many have come since the last one
 *
 * With P > 1 as many processes accept from the same listening socket, as in many a prefork server.
 * Says "ready" when it listens; ends at SIGTERM.
 */
#include "common.h"

#include <fcntl.h>
#include <sys/epoll.h>

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

/* 0: there is none just now. */
static int take_one(int fd, char *buf, size_t room, ssize_t *size, struct sockaddr_storage *from,
                    socklen_t *len) {
  *len = sizeof *from;
  *size = recvfrom(fd, buf, room, 0, (struct sockaddr *)from, len);
  if (*size < 0 && errno != EAGAIN && errno != EINTR) {
    fail("recvfrom");
  }
  return *size >= 0;
}

static void serve_datagrams(int fd, int by_epoll, int sink) {
  static char buf[65536];
  struct sockaddr_storage from;
  socklen_t len;
  ssize_t size;
  struct epoll_event event, want = {.events = EPOLLIN, .data.fd = fd};
  int ep = epoll_create1(EPOLL_CLOEXEC);
  uint64_t come = 0;
  if (by_epoll &&
      (ep < 0 || fcntl(fd, F_SETFL, O_NONBLOCK) != 0 || epoll_ctl(ep, EPOLL_CTL_ADD, fd, &want) != 0)) {
    fail("epoll");
  }
  for (;;) {
    if (by_epoll && epoll_wait(ep, &event, 1, -1) < 0 && errno != EINTR) {
      fail("epoll_wait");
    }
    while (take_one(fd, buf, sizeof buf, &size, &from, &len)) {
      come++;
      if (sink && buf[0] != 'e') {
        continue;
      }
      if (sink) {
        memcpy(buf, &come, sizeof come);
        size = sizeof come;
        come = 0;
      }
      if (sendto(fd, buf, (size_t)size, 0, (struct sockaddr *)&from, len) != size) {
        fail("sendto");
      }
    }
  }
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: server echo|once|hold|sink TARGET [--size N] [--nodelay 1] [--processes P]\n");
    return 2;
  }
  struct target t = parse_target(argv[2]);
  size_t size = number(argc, argv, "--size", "64");
  int nodelay = (int)number(argc, argv, "--nodelay", "0") && t.family != AF_UNIX;
  int listener = t.type == SOCK_DGRAM ? bound_at(&t) : listen_at(&t, 4096);
  begin_serving(number(argc, argv, "--processes", "1"));
  int hold = strcmp(argv[1], "hold") == 0;
  int sink = strcmp(argv[1], "sink") == 0;
  if (t.type == SOCK_DGRAM && (hold || sink || strcmp(argv[1], "echo") == 0)) {
    serve_datagrams(listener, hold, sink);
  } else if (strcmp(argv[1], "echo") == 0) {
    serve_echo(listener, size, nodelay, (int)number(argc, argv, "--server-first", "0"));
  } else if (strcmp(argv[1], "once") == 0) {
    serve_once(listener, size);
  } else if (hold) {
    serve_hold(listener);
  }
  fprintf(stderr, "%s: not a mode\n", argv[1]);
  return 2;
}
