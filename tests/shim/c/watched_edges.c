/* watched_edges SCENE WAY: members with EPOLLET of a set that is looked at from outside by poll, select or sets two levels up, or by
 * a duplicate of its descriptor.  What comes is told of each time, though what came before was not all read; and once. */
#include "named.h"
#include "one_event.h"
#include "pair.h"

#include <fcntl.h>
#include <stdbool.h>
#include <sys/select.h>

enum { WORDS = 65536 };

static int from, to, set, middle, outer, copy;
static const char *way;
static char words[WORDS];

static void look_from_outside(void) {
  middle = epoll_create1(EPOLL_CLOEXEC);
  outer = epoll_create1(EPOLL_CLOEXEC);
  copy = dup(set);
  if (strcmp(way, "set") == 0) {
    MUST(add(outer, middle, EPOLLIN) == 0 && add(middle, set, EPOLLIN) == 0);
  }
}

static bool seen(int ms) {
  if (strcmp(way, "set") == 0) {
    return told(outer, middle, ms) != 0;
  }
  if (strcmp(way, "select") == 0) {
    fd_set in;
    FD_ZERO(&in);
    FD_SET(set, &in);
    struct timeval t = {ms / 1000, ms % 1000 * 1000};
    return select(set + 1, &in, NULL, NULL, &t) == 1;
  }
  struct pollfd p = {.fd = strcmp(way, "duplicate") == 0 ? copy : set, .events = POLLIN};
  return poll(&p, 1, ms) == 1;
}

static unsigned told_here(int ms) {
  return told(strcmp(way, "duplicate") == 0 ? copy : set, to, ms);
}

static void tell(void) {
  MUST(write(from, "hello", 5) == 5);
}

static void nothing(void) {
  MUST(!seen(0) && told_here(0) == 0);
}

/* Each message leaves something behind. */
static void input(void) {
  char text[WORDS];
  MUST(add(set, to, EPOLLIN | EPOLLET) == 0);
  for (int i = 0; i < 20; i++) {
    nothing();
    tell();
    MUST(seen(5000) && told_here(0) == EPOLLIN);
    nothing();
    MUST(read(to, text, 2) == 2);
  }
  nothing();
  tell();
  tell(); /* before anybody looks */
  MUST(seen(5000) && told_here(0) == EPOLLIN);
  nothing();
  MUST(read(to, text, sizeof text) == 70);
  nothing();
  tell();
  MUST(seen(5000) && read(to, text, sizeof text) == 5); /* without a call that tells of it */
  nothing();
  MUST(shutdown(from, SHUT_WR) == 0);
  MUST(seen(5000) && (told_here(0) & EPOLLIN) && read(to, text, sizeof text) == 0);
}

/* The same, asleep. */
static void *talks(void *none) {
  for (int i = 0; i < 20; i++) {
    moment(5);
    tell();
  }
  return none;
}

static void asleep(void) {
  char text[WORDS];
  pthread_t thread;
  size_t got = 0;
  MUST(add(set, to, EPOLLIN | EPOLLET) == 0);
  nothing();
  MUST(pthread_create(&thread, NULL, talks, NULL) == 0);
  for (int i = 0; i < 19; i++) { /* one at least that is not read is told of */
    MUST(seen(5000) && told_here(5000) == EPOLLIN);
    ssize_t n = read(to, text, 2);
    MUST(n == 2);
    got += (size_t)n;
    if (i % 4 == 3) {
      break;
    }
  }
  MUST(pthread_join(thread, NULL) == 0);
  while (seen(0)) {
    told_here(0);
  }
  nothing();
  tell();
  MUST(seen(5000) && told_here(0) == EPOLLIN);
  MUST(fcntl(to, F_SETFL, O_NONBLOCK) == 0);
  for (ssize_t n; (n = read(to, text, sizeof text)) > 0;) {
    got += (size_t)n;
  }
  MUST(got == 105 && errno == EAGAIN);
}

static void drain(int fd) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  while (poll(&p, 1, 100) == 1) {
    MUST(recv(fd, words, sizeof words, MSG_DONTWAIT) > 0);
  }
}

static void space(unsigned events) {
  MUST(add(set, to, events | EPOLLET) == 0);
  MUST(seen(5000) && told_here(0) == EPOLLOUT);
  for (int i = 0; i < 3; i++) {
    nothing();
    do {
      fill(to);
    } while (told_here(30) != 0); /* room that was told of and not used is not told of again */
    nothing();
    drain(from);
    MUST(seen(5000) && told_here(0) == EPOLLOUT);
  }
}

/* What the set had been told of before anybody looked at it is no news afterwards. */
static void looked_at_later(void) {
  MUST(add(set, to, EPOLLIN | EPOLLOUT | EPOLLET) == 0 && told_here(5000) == EPOLLOUT);
  tell();
  MUST(told_here(5000) == (EPOLLIN | EPOLLOUT) && told_here(0) == 0 && read(to, words, 2) == 2);
  look_from_outside();
  for (int i = 0; i < 3; i++) {
    nothing();
    tell();
    MUST(seen(5000) && told_here(0) == (EPOLLIN | EPOLLOUT));
  }
  do {
    fill(to);
  } while (told_here(30) != 0);
  nothing();
  drain(from);
  MUST(seen(5000) && told_here(0) == (EPOLLIN | EPOLLOUT));
  nothing();
  MUST(shutdown(from, SHUT_WR) == 0);
  MUST(seen(5000) && (told_here(0) & EPOLLIN));
  nothing();
}

/* So is an end, of which the kernel would tell whoever asks it. */
static void ended_earlier(void) {
  MUST(add(set, to, EPOLLIN | EPOLLET) == 0 && told_here(0) == 0);
  MUST(shutdown(from, SHUT_WR) == 0);
  MUST(told_here(5000) == EPOLLIN && told_here(0) == 0);
  look_from_outside();
  nothing();
  reset_by(from);
  MUST(seen(5000) && (told_here(0) & EPOLLERR));
  nothing();
}

static void added_at_its_end(void) {
  look_from_outside();
  nothing();
  MUST(shutdown(from, SHUT_WR) == 0);
  moment(20);
  MUST(add(set, to, EPOLLIN | EPOLLRDHUP | EPOLLET) == 0);
  MUST(seen(5000) && told_here(0) == (EPOLLIN | EPOLLRDHUP));
  nothing();
}

static void fired_earlier(void) {
  MUST(add(set, to, EPOLLOUT | EPOLLET | EPOLLONESHOT) == 0);
  MUST(told_here(5000) == EPOLLOUT && told_here(0) == 0);
  reset_by(from);
  moment(20);
  MUST(told_here(0) == 0);
  look_from_outside();
  nothing();
}

/* The same, the reset not seen by the set; and it can be armed again, or taken out. */
static void reset_after_it_fired(void) {
  MUST(add(set, to, EPOLLOUT | EPOLLET | EPOLLONESHOT) == 0 && told_here(5000) == EPOLLOUT);
  reset_by(from);
  moment(20);
  look_from_outside();
  nothing();
  MUST(change(EPOLL_CTL_MOD, set, to, EPOLLIN | EPOLLONESHOT) == 0);
  MUST(seen(5000) && (told_here(0) & EPOLLIN));
  nothing();
  MUST(change(EPOLL_CTL_DEL, set, to, 0) == 0);
  MUST(change(EPOLL_CTL_DEL, set, to, 0) == -1 && errno == ENOENT);
}

static void out_after_it_fired(void) {
  MUST(add(set, to, EPOLLOUT | EPOLLONESHOT) == 0 && told_here(5000) == EPOLLOUT);
  look_from_outside();
  nothing();
  MUST(add(set, to, EPOLLIN) == -1 && errno == EEXIST);
  MUST(change(EPOLL_CTL_DEL, set, to, 0) == 0);
  MUST(change(EPOLL_CTL_MOD, set, to, EPOLLIN) == -1 && errno == ENOENT);
  MUST(add(set, to, EPOLLIN) == 0);
  nothing();
  tell();
  MUST(seen(5000) && told_here(0) == EPOLLIN);
}

/* One send that does not go all at once, and none after it. */
static void cut_short(void) {
  static char much[16 << 20];
  MUST(add(set, to, EPOLLOUT | EPOLLET) == 0);
  MUST(told_here(5000) == EPOLLOUT && told_here(0) == 0);
  look_from_outside();
  nothing();
  ssize_t n = send(to, much, sizeof much, MSG_DONTWAIT);
  MUST(n > 0 && (size_t)n < sizeof much);
  drain(from);
  MUST(seen(5000) && told_here(0) == EPOLLOUT);
  nothing();
}

int main(int argc, char **argv) {
  MUST(argc == 3);
  way = argv[2];
  pair_make(&from, &to);
  set = epoll_create1(EPOLL_CLOEXEC);
  static const struct named earlier[] = {{"later", looked_at_later},
                                         {"cut-short", cut_short},
                                         {"ended-earlier", ended_earlier},
                                         {"added-at-its-end", added_at_its_end},
                                         {"fired-earlier", fired_earlier},
                                         {"reset-after-it-fired", reset_after_it_fired},
                                         {"out-after-it-fired", out_after_it_fired}};
  copy = set; /* until somebody looks from outside */
  if (run_named(earlier, sizeof earlier / sizeof *earlier, argv[1]) == 0) {
    printf("ok\n");
    return 0;
  }
  look_from_outside();
  if (strcmp(argv[1], "input") == 0) {
    input();
  } else if (strcmp(argv[1], "asleep") == 0) {
    asleep();
  } else if (strcmp(argv[1], "space") == 0) {
    space(EPOLLOUT);
  } else {
    space(EPOLLIN | EPOLLOUT);
  }
  printf("ok\n");
  return 0;
}
