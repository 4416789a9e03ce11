/* An echo server: one thread, non-blocking sockets, edge-triggered epoll.
 *
 *   cc -O2 -o echo_server echo_server.c
 *   ./echo_server ADDRESS PORT
 *
 * Whatever a client sends comes back.  When the client has shut down its sending side, the rest is sent and
 * the connection ends.  It knows TCP and nothing else.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 64 * 1024, EVENTS = 64 };

struct client {
  int fd;
  int ended; /* the client will send nothing more */
  size_t begin, end;
  char buffer[BUFFER];
};

static volatile sig_atomic_t stopping;

static void stop(int number) {
  (void)number;
  stopping = 1;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

/* Reads and writes until neither is possible; 0 when the connection has ended. */
static int serve(struct client *c) {
  for (;;) {
    while (c->begin < c->end) {
      ssize_t n = send(c->fd, c->buffer + c->begin, c->end - c->begin, MSG_NOSIGNAL);
      if (n < 0) {
        return errno == EAGAIN || errno == EINTR;
      }
      c->begin += (size_t)n;
    }
    if (c->ended) {
      return 0;
    }
    ssize_t n = recv(c->fd, c->buffer, sizeof c->buffer, 0);
    if (n < 0) {
      return errno == EAGAIN || errno == EINTR;
    }
    c->begin = 0;
    c->end = (size_t)n;
    c->ended = n == 0;
  }
}

static void accept_all(int listener, int set) {
  for (;;) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    struct client *c = calloc(1, sizeof *c);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
    if (c == NULL || epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) != 0) {
      free(c);
      close(fd);
      continue;
    }
    c->fd = fd;
  }
}

int main(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: echo_server ADDRESS PORT\n");
    return 2;
  }
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
  if (inet_pton(AF_INET, argv[1], &at.sin_addr) != 1) {
    fprintf(stderr, "echo_server: %s is not an IPv4 address\n", argv[1]);
    return 2;
  }
  struct sigaction action = {.sa_handler = stop};
  sigaction(SIGTERM, &action, NULL);
  sigaction(SIGINT, &action, NULL);
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (listener < 0) {
    fail("socket");
  }
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
  if (bind(listener, (struct sockaddr *)&at, sizeof at) != 0) {
    fail("bind");
  }
  if (listen(listener, 1024) != 0) {
    fail("listen");
  }
  int set = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
  if (set < 0 || epoll_ctl(set, EPOLL_CTL_ADD, listener, &event) != 0) {
    fail("epoll");
  }
  puts("ready");
  fflush(stdout);
  while (!stopping) {
    struct epoll_event events[EVENTS];
    int n = epoll_wait(set, events, EVENTS, -1);
    for (int i = 0; i < n; i++) {
      struct client *c = events[i].data.ptr;
      if (c == NULL) {
        accept_all(listener, set);
      } else if (!serve(c)) {
        close(c->fd);
        free(c);
      }
    }
  }
  return 0;
}
