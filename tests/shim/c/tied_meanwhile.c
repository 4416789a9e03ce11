/* A thread polls a connection that is not tied yet, and another one ties it (by writing first) between the thread's look at
 * it and its sleep: the clock, which is asked in between, holds the thread up. */
#include "pair.h"

#include <poll.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>

static int fd;
static __thread int held_up;
static volatile int between, tied;

int clock_gettime(clockid_t clock, struct timespec *at) {
  if (held_up) {
    held_up = 0;
    between = 1;
    while (!tied) {
      sched_yield();
    }
  }
  return (int)syscall(SYS_clock_gettime, clock, at);
}

static void *polls(void *unused) {
  struct pollfd p = {fd, POLLIN, 0};
  char byte;
  held_up = 1;
  int n = poll(&p, 1, -1);
  between = 1; /* plain poll does not ask the clock */
  MUST(n == 1 && p.revents == POLLIN && read(fd, &byte, 1) == 1);
  return unused;
}

int main(void) {
  struct sockaddr_in at;
  socklen_t size = sizeof at;
  char byte;
  int go[2];
  int listening = listen_on(0);
  MUST(getsockname(listening, (struct sockaddr *)&at, &size) == 0 && pipe(go) == 0);
  pid_t child = fork();
  MUST(child >= 0);
  if (child == 0) {
    int s = socket(AF_INET, SOCK_STREAM, 0);
    MUST(connect(s, (struct sockaddr *)&at, sizeof at) == 0);
    MUST(write(go[1], "c", 1) == 1); /* it has claimed */
    MUST(read(s, &byte, 1) == 1 && write(s, "x", 1) == 1);
    MUST(read(s, &byte, 1) == 0);
    _exit(0);
  }
  fd = accept(listening, NULL, NULL); /* mostly before the claim */
  pthread_t thread;
  MUST(pthread_create(&thread, NULL, polls, NULL) == 0);
  MUST(read(go[0], &byte, 1) == 1);
  for (int i = 0; !between && i < 100; i++) { /* plain: never */
    usleep(1000);
  }
  MUST(write(fd, "h", 1) == 1);
  tied = 1;
  int status;
  MUST(pthread_join(thread, NULL) == 0);
  close(fd);
  MUST(waitpid(child, &status, 0) == child && status == 0);
  printf("ok\n");
  return 0;
}
