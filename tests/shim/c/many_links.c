/* many_links COUNT: poll over connections from that many client processes, each on a link of its own: it sleeps, and any one
 * of them wakes it. */
#include "pair.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>

enum { MOST = 400 };

static int go[MOST], chosen;
static volatile int tid;

static void client(int number, struct sockaddr_in *at, int turn) {
  char byte;
  for (int i = 0; i < number; i++) {
    close(go[i]);
  }
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  MUST(connect(fd, (struct sockaddr *)at, sizeof *at) == 0);
  for (int i = 0; i < 3; i++) {
    MUST(write(fd, "x", 1) == 1 && read(fd, &byte, 1) == 1);
  }
  while (read(turn, &byte, 1) == 1) {
    MUST(write(fd, "y", 1) == 1);
  }
  _exit(0);
}

static void *wakes(void *unused) {
  wait_until_asleep(&tid);
  MUST(write(go[chosen], "g", 1) == 1);
  return unused;
}

int main(int argc, char **argv) {
  static struct pollfd p[MOST];
  struct sockaddr_in at;
  socklen_t size = sizeof at;
  char byte;
  MUST(argc == 2);
  int count = atoi(argv[1]);
  int listening = listen_on(0);
  MUST(count <= MOST && getsockname(listening, (struct sockaddr *)&at, &size) == 0);
  for (int i = 0; i < count; i++) {
    int ends[2];
    MUST(pipe(ends) == 0);
    go[i] = ends[1];
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
      close(listening);
      close(go[i]);
      for (int k = 0; k < i; k++) {
        close(p[k].fd);
      }
      client(i, &at, ends[0]);
    }
    close(ends[0]);
    p[i] = (struct pollfd){accept(listening, NULL, NULL), POLLIN, 0};
    for (int k = 0; k < 3; k++) {
      MUST(read(p[i].fd, &byte, 1) == 1 && write(p[i].fd, "x", 1) == 1);
    }
  }
  int who[] = {0, 1, count / 2, count - 2, count - 1, 0};
  for (unsigned i = 0; i < sizeof who / sizeof *who; i++) {
    pthread_t thread;
    chosen = who[i];
    tid = gettid();
    MUST(pthread_create(&thread, NULL, wakes, NULL) == 0);
    MUST(poll(p, (nfds_t)count, -1) == 1 && p[chosen].revents == POLLIN);
    MUST(read(p[chosen].fd, &byte, 1) == 1 && pthread_join(thread, NULL) == 0);
  }
  for (int i = 0; i < count; i++) {
    close(go[i]);
  }
  for (int i = 0; i < count; i++) {
    int status;
    MUST(wait(&status) > 0 && status == 0);
  }
  printf("ok\n");
  return 0;
}
