/* Both ends of a connection in one process, after a few exchanges: on a ring, or by a unix socket, if it ever gets there. */
#ifndef BERTHA_TEST_PAIR_H
#define BERTHA_TEST_PAIR_H

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>

#include "common.h"

static inline int pair_listener(struct sockaddr_in *at) {
  int fd = listen_on(0);
  socklen_t size = sizeof *at;
  MUST(getsockname(fd, (struct sockaddr *)at, &size) == 0);
  return fd;
}

static inline void exchanges(int client, int server, int count) {
  char bytes[4];
  for (int i = 0; i < count; i++) {
    MUST(write(client, "ask", 3) == 3 && recv(server, bytes, 3, MSG_WAITALL) == 3);
    MUST(write(server, "say", 3) == 3 && recv(client, bytes, 3, MSG_WAITALL) == 3);
  }
}

static inline void pair_of(int listener, const struct sockaddr_in *at, int *client, int *server) {
  *client = socket(AF_INET, SOCK_STREAM, 0);
  MUST(connect(*client, (const struct sockaddr *)at, sizeof *at) == 0);
  *server = accept(listener, NULL, NULL);
  MUST(*server >= 0);
  int on = 1; /* what is written is there at once */
  MUST(setsockopt(*client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0);
  MUST(setsockopt(*server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0);
  exchanges(*client, *server, 3);
}

static inline void reset_by(int fd) { /* closes it with a RST */
  struct linger now = {.l_onoff = 1};
  MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now) == 0);
  MUST(close(fd) == 0);
}

static inline void moment(int ms) {
  struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  nanosleep(&t, NULL);
}

static inline double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* What a call returned: a number, or the error's name. */
static inline void say(const char *what, long result) {
  if (result < 0) {
    printf("%s: %s\n", what, strerrorname_np(errno));
  } else {
    printf("%s: %ld\n", what, result);
  }
  fflush(stdout);
}

#endif
