/* fair SCENE: an epoll set in which more is ready all the time than the program takes at once.
 *
 * one: room for one event, two connections and a pipe; many: more connections than room, nothing read to the end; edges:
 * the same, edge-triggered.  Both ends are in this process. */
#include "pair.h"

#include <sys/epoll.h>

enum { CONNECTIONS = 40, ROOM = 8 };

static int set;

static void add(int fd, unsigned events, unsigned number) {
  struct epoll_event e = {.events = events, .data.u32 = number};
  MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0);
}

static void one(void) {
  enum { TURNS = 40 };
  char text[TURNS] = "", byte;
  int in[3], out[3], told[3] = {0};
  pair_make(&out[0], &in[0]);
  pair_make(&out[1], &in[1]);
  int ends[2];
  MUST(pipe(ends) == 0);
  in[2] = ends[0];
  out[2] = ends[1];
  for (unsigned i = 0; i < 3; i++) {
    add(in[i], EPOLLIN, i);
    MUST(write(out[i], text, sizeof text) == sizeof text);
  }
  for (int turn = 0; turn < TURNS; turn++) {
    struct epoll_event e;
    MUST(epoll_wait(set, &e, 1, 10000) == 1);
    told[e.data.u32]++;
    MUST(read(in[e.data.u32], &byte, 1) == 1);
    usleep(1000); /* the kernel is asked now and then: it is due each time */
  }
  for (int i = 0; i < 3; i++) {
    MUST(told[i] >= TURNS / 8);
  }
}

static void many(unsigned events) {
  int from[CONNECTIONS], to[CONNECTIONS], told[CONNECTIONS + 1] = {0};
  char text[100] = "", byte;
  for (unsigned i = 0; i < CONNECTIONS; i++) {
    pair_make(&from[i], &to[i]);
    add(to[i], events, i);
    MUST(write(from[i], text, sizeof text) == sizeof text);
  }
  int ends[2];
  MUST(pipe(ends) == 0 && write(ends[1], text, 1) == 1);
  add(ends[0], EPOLLIN, CONNECTIONS);
  for (int turn = 0; turn < 2 * CONNECTIONS / ROOM + 2; turn++) {
    struct epoll_event e[ROOM];
    int n = epoll_wait(set, e, ROOM, 10000);
    MUST(n > 0);
    for (int i = 0; i < n; i++) {
      unsigned who = e[i].data.u32;
      told[who]++;
      MUST(who == CONNECTIONS || read(to[who], &byte, 1) == 1);
      if (who < CONNECTIONS) { /* an edge */
        MUST(write(from[who], text, 1) == 1);
      }
    }
    usleep(1000);
  }
  for (int i = 0; i <= CONNECTIONS; i++) {
    MUST(told[i] > 0);
  }
}

int main(int argc, char **argv) {
  MUST(argc == 2);
  set = epoll_create1(EPOLL_CLOEXEC);
  if (strcmp(argv[1], "one") == 0) {
    one();
  } else {
    many(strcmp(argv[1], "edges") == 0 ? EPOLLIN | EPOLLET : EPOLLIN);
  }
  printf("ok\n");
  return 0;
}
