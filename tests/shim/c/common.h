/* What the test programs share: a listening socket, and failing loudly. */
#ifndef BERTHA_TEST_COMMON_H
#define BERTHA_TEST_COMMON_H

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MUST(x)                                                                                              \
  do {                                                                                                       \
    if (!(x)) {                                                                                              \
      fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, #x, strerror(errno));                  \
      _exit(9);                                                                                              \
    }                                                                                                        \
  } while (0)

static inline int listen_on(int port) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int on = 1;
  MUST(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0);
  MUST(bind(fd, (struct sockaddr *)&at, sizeof at) == 0);
  MUST(listen(fd, 64) == 0);
  return fd;
}

#endif
