/* What the measuring programs share: addresses, the clock, whole reads and writes.
 *
 * These are deliberately ordinary programs: blocking calls, no option that a normal program would not
 * set.  They know nothing of bertha and run the same with and without it.
 */
#ifndef BERTHA_BENCH_COMMON_H
#define BERTHA_BENCH_COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

struct target {
  int family;
  int type; /* SOCK_STREAM, SOCK_DGRAM */
  socklen_t len;
  struct sockaddr_storage addr;
};

__attribute__((noreturn)) static inline void fail(const char *what) {
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  exit(1);
}

static inline uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Processor time of this process so far, user and system. */
static inline uint64_t cpu_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* "unix:PATH", "ADDRESS:PORT" or "udp:ADDRESS:PORT", an IPv6 address without brackets (the last colon separates). */
static inline struct target parse_target(const char *text) {
  struct target t;
  memset(&t, 0, sizeof t);
  t.type = SOCK_STREAM;
  if (strncmp(text, "unix:", 5) == 0) {
    struct sockaddr_un *un = (struct sockaddr_un *)&t.addr;
    un->sun_family = AF_UNIX;
    if (strlen(text + 5) >= sizeof un->sun_path) {
      errno = ENAMETOOLONG;
      fail(text);
    }
    memcpy(un->sun_path, text + 5, strlen(text + 5) + 1);
    t.family = AF_UNIX;
    t.len = sizeof *un;
    return t;
  }
  if (strncmp(text, "udp:", 4) == 0) {
    t.type = SOCK_DGRAM;
    text += 4;
  }
  char host[128];
  const char *colon = strrchr(text, ':');
  if (colon == NULL || (size_t)(colon - text) >= sizeof host) {
    errno = EINVAL;
    fail(text);
  }
  memcpy(host, text, (size_t)(colon - text));
  host[colon - text] = 0;
  uint16_t port = htons((uint16_t)atoi(colon + 1));
  struct sockaddr_in *v4 = (struct sockaddr_in *)&t.addr;
  struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&t.addr;
  if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = port;
    t.family = AF_INET;
    t.len = sizeof *v4;
  } else if (inet_pton(AF_INET6, host, &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = port;
    t.family = AF_INET6;
    t.len = sizeof *v6;
  } else {
    errno = EINVAL;
    fail(text);
  }
  return t;
}

static inline int open_to(const struct target *t, int nodelay) {
  int fd = socket(t->family, t->type | SOCK_CLOEXEC, 0);
  if (fd < 0) {
    fail("socket");
  }
  if (nodelay && t->family != AF_UNIX && t->type == SOCK_STREAM) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  }
  if (connect(fd, (const struct sockaddr *)&t->addr, t->len) != 0) {
    fail("connect");
  }
  return fd;
}

static inline int bound_at(const struct target *t) {
  int fd = socket(t->family, t->type | SOCK_CLOEXEC, 0);
  int one = 1;
  if (fd < 0) {
    fail("socket");
  }
  if (t->type == SOCK_STREAM) {
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  }
  if (bind(fd, (const struct sockaddr *)&t->addr, t->len) != 0) {
    fail("bind");
  }
  return fd;
}

static inline int listen_at(const struct target *t, int backlog) {
  int fd = bound_at(t);
  if (listen(fd, backlog) != 0) {
    fail("listen");
  }
  return fd;
}

static inline void send_all(int fd, const char *buf, size_t n) {
  while (n > 0) {
    ssize_t done = send(fd, buf, n, MSG_NOSIGNAL);
    if (done < 0) {
      if (errno == EINTR) {
        continue;
      }
      fail("send");
    }
    buf += done;
    n -= (size_t)done;
  }
}

/* Returns 1, or 0 when the peer closed before the first byte. */
static inline int recv_all(int fd, char *buf, size_t n) {
  size_t got = 0;
  while (got < n) {
    ssize_t done = recv(fd, buf + got, n - got, 0);
    if (done < 0) {
      if (errno == EINTR) {
        continue;
      }
      fail("recv");
    }
    if (done == 0) {
      if (got == 0) {
        return 0;
      }
      fprintf(stderr, "recv: the peer closed in the middle of a message\n");
      exit(1);
    }
    got += (size_t)done;
  }
  return 1;
}

static inline void leave(int sig) {
  (void)sig;
  _exit(0);
}

/* Says "ready", ends at SIGTERM, and goes on as so many processes. */
static inline void begin_serving(size_t processes) {
  struct sigaction on_term = {.sa_handler = leave};
  sigaction(SIGTERM, &on_term, NULL);
  printf("ready\n");
  fflush(stdout);
  for (size_t p = 1; p < processes; p++) {
    pid_t child = fork();
    if (child < 0) {
      fail("fork");
    }
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGTERM);
      break;
    }
  }
}

/* "--name VALUE" among the arguments, else `otherwise`. */
static inline const char *option(int argc, char **argv, const char *name, const char *otherwise) {
  for (int i = 1; i + 1 < argc; i++) {
    if (strcmp(argv[i], name) == 0) {
      return argv[i + 1];
    }
  }
  return otherwise;
}

static inline size_t number(int argc, char **argv, const char *name, const char *otherwise) {
  return (size_t)strtoull(option(argc, argv, name, otherwise), NULL, 10);
}

#endif
