/* A connection of which both ends are in this process, and which is on shared memory if that can be. */
#ifndef BERTHA_TEST_PAIR_H
#define BERTHA_TEST_PAIR_H

#include "common.h"

#include <netinet/tcp.h>

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

/* Until that thread sleeps in the kernel.  Three looks, because the first may meet it on its way there. */
static inline void wait_until_asleep(volatile int *tid) {
  for (int same = 0; same < 3;) {
    char path[64], text[256] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", *tid);
    FILE *f = *tid != 0 ? fopen(path, "r") : NULL;
    char *state = f != NULL && fgets(text, sizeof text, f) != NULL ? strrchr(text, ')') : NULL;
    same = state != NULL && state[2] == 'S' ? same + 1 : 0;
    if (f != NULL) {
      fclose(f);
    }
    usleep(1000);
  }
}

#endif
