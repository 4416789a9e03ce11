/* let_in SCENE: what a signal does to poll, select and epoll_wait over a connection.
 *
 * left: select leaves the time not slept when it is interrupted, too; let-in: a signal that only the call's mask lets in,
 * pending before; handler: poll and select, also of many, do not call malloc, which the handler may have interrupted. */
#include "pair.h"

#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/time.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t);
static volatile int in_handler, came;
static int from, to;

void *malloc(size_t size) {
  MUST(!in_handler);
  return __libc_malloc(size);
}

void *calloc(size_t n, size_t size) {
  MUST(!in_handler);
  return __libc_calloc(n, size);
}

static void note(int number) {
  came += number != 0;
}

static void left(void) {
  struct sigaction action = {.sa_handler = note};
  MUST(sigaction(SIGALRM, &action, NULL) == 0);
  struct itimerval often = {{0, 20000}, {0, 20000}};
  MUST(setitimer(ITIMER_REAL, &often, NULL) == 0);
  struct timeval t = {60, 0};
  for (int i = 0; i < 3; i++) {
    long before = t.tv_sec * 1000000 + t.tv_usec;
    fd_set set;
    FD_ZERO(&set);
    FD_SET(to, &set);
    while (select(to + 1, &set, NULL, NULL, &t) != -1) {
    }
    MUST(errno == EINTR);
    MUST(t.tv_sec * 1000000 + t.tv_usec < before);
  }
}

static void let_in(void) {
  sigset_t blocked, none;
  struct timespec zero = {0, 0}, some = {5, 0};
  struct pollfd p = {to, POLLIN, 0};
  struct epoll_event e = {.events = EPOLLIN};
  char byte;
  int set = epoll_create1(0);
  signal(SIGUSR1, note);
  sigemptyset(&none);
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR1);
  MUST(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0);
  MUST(epoll_ctl(set, EPOLL_CTL_ADD, to, &e) == 0);
  for (int i = 0; i < 5; i++) {
    fd_set fds;
    came = 0;
    MUST(raise(SIGUSR1) == 0 && ppoll(&p, 1, &zero, &none) == -1 && errno == EINTR && came == 1);
    FD_ZERO(&fds);
    FD_SET(to, &fds);
    MUST(raise(SIGUSR1) == 0 && pselect(to + 1, &fds, NULL, NULL, &zero, &none) == -1 && errno == EINTR &&
         came == 2);
    MUST(raise(SIGUSR1) == 0 && ppoll(&p, 1, &some, &none) == -1 && errno == EINTR && came == 3);
    MUST(raise(SIGUSR1) == 0 && epoll_pwait(set, &e, 1, 5000, &none) == -1 && errno == EINTR && came == 4);
    MUST(write(from, "x", 1) == 1 && poll(&p, 1, 5000) == 1);
    /* what is ready comes first */
    MUST(raise(SIGUSR1) == 0 && ppoll(&p, 1, &zero, &none) == 1 &&
         epoll_pwait(set, &e, 1, 5000, &none) == 1 && came == 4);
    MUST(read(to, &byte, 1) == 1);
    MUST(ppoll(&p, 1, &zero, &none) == -1 && errno == EINTR && came == 5);
  }
}

static void handler(void) {
  enum { MANY = 200 };
  static struct pollfd p[MANY];
  struct timeval zero = {0, 0};
  fd_set set;
  int highest = 0;
  FD_ZERO(&set);
  for (int i = 0; i < MANY; i++) {
    p[i] = (struct pollfd){i == 0 ? to : dup(to), POLLIN, 0};
    MUST(p[i].fd >= 0 && p[i].fd < FD_SETSIZE);
    highest = p[i].fd > highest ? p[i].fd : highest;
    FD_SET(p[i].fd, &set);
  }
  MUST(write(from, "x", 1) == 1);
  in_handler = 1;
  for (int i = 0; i < 3; i++) {
    fd_set one, now = set;
    FD_ZERO(&one);
    FD_SET(to, &one);
    MUST(select(to + 1, &one, NULL, NULL, &zero) == 1);
    MUST(select(highest + 1, &now, NULL, NULL, &zero) == MANY);
    MUST(poll(p, 1, 0) == 1 && poll(p, MANY, 0) == MANY);
  }
  in_handler = 0;
}

int main(int argc, char **argv) {
  MUST(argc == 2);
  pair_make(&from, &to);
  if (strcmp(argv[1], "left") == 0) {
    left();
  } else if (strcmp(argv[1], "let-in") == 0) {
    let_in();
  } else {
    handler();
  }
  printf("ok\n");
  return 0;
}
