/* Two processes of one host that exchange datagrams; by its first byte, the server knows what is wanted. */
#ifndef BERTHA_TEST_DATAGRAM_ENDS_H
#define BERTHA_TEST_DATAGRAM_ENDS_H

#include "common.h"

#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>

enum { BIG = 3000, SMALL = 100, NAP_US = 400000, SOON_NS = 200000000 };

static struct sockaddr_in server, second;

static inline int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline int bound_socket(const struct sockaddr_in *at, bool reuse) {
  int fd = socket(AF_INET, SOCK_DGRAM, 0), on = 1;
  MUST(!reuse || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0);
  MUST(bind(fd, (const struct sockaddr *)at, sizeof *at) == 0);
  return fd;
}

static inline int client_socket(bool connected) {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  struct timeval patience = {5, 0};
  MUST(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0);
  MUST(!connected || connect(fd, (struct sockaddr *)&server, sizeof server) == 0);
  return fd;
}

/* By its first byte: 'b' is answered by a big one, 'n' and then there is a nap, 'l' after a while, 'k' with a big one and a small
 * one; 'q' ends it. */
static inline void serve(int fd) {
  uint8_t data[BIG];
  for (;;) {
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    ssize_t n = recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&from, &size);
    MUST(n >= 0);
    if (n > 0 && data[0] == 'q') {
      exit(0);
    }
    if (n > 0 && data[0] == 'l') {
      usleep(100000);
    }
    if (n > 0 && (data[0] == 'b' || data[0] == 'k')) {
      MUST(sendto(fd, data, BIG, 0, (struct sockaddr *)&from, size) == BIG);
    }
    if (n == 0 || data[0] != 'b') {
      MUST(sendto(fd, data, (size_t)n, 0, (struct sockaddr *)&from, size) == n);
    }
    if (n > 0 && data[0] == 'n') {
      usleep(NAP_US);
    }
  }
}

static inline pid_t child(const struct sockaddr_in *at, bool reuse, void (*run)(int fd)) {
  int bound[2];
  char byte;
  MUST(pipe(bound) == 0);
  pid_t pid = fork();
  if (pid == 0) {
    int fd = bound_socket(at, reuse);
    MUST(write(bound[1], "b", 1) == 1);
    run(fd);
    exit(0);
  }
  MUST(read(bound[0], &byte, 1) == 1);
  close(bound[0]);
  close(bound[1]);
  return pid;
}

static inline pid_t start(void) {
  return child(&server, false, serve);
}

static inline void put(int fd, char what, const struct sockaddr_in *to) {
  uint8_t data[SMALL];
  memset(data, what, sizeof data);
  MUST(sendto(fd, data, sizeof data, 0, (const struct sockaddr *)to, to != NULL ? sizeof *to : 0) == SMALL);
}

static inline void ask(int fd, char what, const struct sockaddr_in *to) {
  uint8_t got[BIG];
  put(fd, what, to);
  ssize_t n = recv(fd, got, sizeof got, 0);
  MUST(n == SMALL && got[0] == (uint8_t)what);
}

/* Both ends know each other, and look into their boxes. */
static inline void warm_up(int fd, const struct sockaddr_in *to) {
  for (int i = 0; i < 60; i++) {
    ask(fd, 'a', to);
    if (i % 20 == 10) {
      usleep(3000);
    }
  }
}

static inline void finish(pid_t pid, const struct sockaddr_in *at) {
  int status;
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  put(fd, 'q', at);
  MUST(waitpid(pid, &status, 0) == pid && status == 0);
  close(fd);
}

struct scene {
  const char *name;
  void (*run)(void);
  bool (*may)(void); /* false: there is nothing to try it with */
};

/* PORT SCENE */
static inline int play(int argc, char **argv, const struct scene *scenes, size_t count) {
  MUST(argc == 3);
  server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
  server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  second = server;
  second.sin_port = htons((uint16_t)(atoi(argv[1]) + 1));
  for (size_t i = 0; i < count; i++) {
    if (strcmp(argv[2], scenes[i].name) == 0) {
      bool done = true;
      if (scenes[i].run != NULL) {
        scenes[i].run();
      } else {
        done = scenes[i].may();
      }
      puts(done ? "ok" : "none");
      return 0;
    }
  }
  return 2;
}

#endif
