/* Both ends of a connection in one process, after a few exchanges: on a ring, or by a unix socket, if it ever gets there. */
#ifndef BERTHA_TEST_PAIR_H
#define BERTHA_TEST_PAIR_H

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>

#include "common.h"

static inline void pair_make(int *client, int *server) {
  static int listening = -1;
  static struct sockaddr_in at;
  socklen_t size = sizeof at;
  int on = 1;
  char byte = 'x';
  if (listening < 0) {
    listening = listen_on(0);
    MUST(getsockname(listening, (struct sockaddr *)&at, &size) == 0);
  }
  *client = socket(AF_INET, SOCK_STREAM, 0);
  MUST(connect(*client, (struct sockaddr *)&at, sizeof at) == 0);
  *server = accept(listening, NULL, NULL);
  MUST(setsockopt(*client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0);
  MUST(setsockopt(*server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0);
  for (int i = 0; i < 3; i++) {
    MUST(write(*client, &byte, 1) == 1 && read(*server, &byte, 1) == 1);
    MUST(write(*server, &byte, 1) == 1 && read(*client, &byte, 1) == 1);
  }
}

static inline void fill(int fd) { /* as much as it takes, which does not block from here on */
  static const char words[65536];
  MUST(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
  for (int i = 0; i < 4; i++) { /* what the other end has taken over makes room once more */
    while (write(fd, words, sizeof words) > 0) {
    }
    MUST(errno == EAGAIN);
    usleep(30000);
  }
}

/* Until that thread sleeps in the kernel.  Three looks, because the first may meet it on its way there. */
static inline void wait_until_asleep(volatile int *tid) {
  for (int same = 0; same < 3;) {
    char path[64], text[256] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", *tid);
    FILE *f = *tid != 0 ? fopen(path, "r") : NULL;
    if (*tid != 0 && f == NULL) { /* it has had what it waits for already */
      return;
    }
    char *state = f != NULL && fgets(text, sizeof text, f) != NULL ? strrchr(text, ')') : NULL;
    same = state != NULL && state[2] == 'S' ? same + 1 : 0;
    if (f != NULL) {
      fclose(f);
    }
    usleep(1000);
  }
}

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
