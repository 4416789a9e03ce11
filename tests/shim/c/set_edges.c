/* set_edges SCENE: what a set, or poll(), has to remember of a connection while it does not watch it, or cannot be woken in the usual
 * way. */
#include "one_event.h"
#include "pair.h"

#include <fcntl.h>
#include <stdbool.h>
#include <sys/resource.h>

enum { MANY = 300, WORDS = 65536 };

static int from, to, set;
static char words[WORDS];
static volatile int tid;

static void tell(void) {
  MUST(write(from, "hello", 5) == 5);
}

static void take(void) {
  char text[64];
  MUST(read(to, text, sizeof text) == 5);
}

static void drain(int fd) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  while (poll(&p, 1, 100) == 1) {
    MUST(recv(fd, words, sizeof words, MSG_DONTWAIT) > 0);
  }
}

/* ---- not watched while the other end ends -------------------------------------------------------- */

static void removed(int how) {
  int other[2];
  MUST(pipe(other) == 0 && add(set, other[0], EPOLLIN) == 0 && add(set, to, EPOLLIN) == 0);
  MUST(told(set, to, 10) == 0 && change(EPOLL_CTL_DEL, set, to, 0) == 0);
  if (how == 'r') {
    reset_by(from);
  } else {
    MUST(shutdown(from, SHUT_WR) == 0);
  }
  MUST(told(set, to, 100) == 0);
  MUST(add(set, to, EPOLLIN) == 0 && (told(set, to, 10000) & EPOLLIN));
}

static void end_meanwhile(void) {
  removed('e');
}

static void reset_meanwhile(void) {
  removed('r');
}

/* ---- duplicates ---------------------------------------------------------------------------------- */

/* How many events there are; both[0]: of `to`, both[1]: of the duplicate. */
static int both_in(int copy, int both[2], int ms) {
  struct epoll_event e[4];
  int n = epoll_wait(set, e, 4, ms);
  both[0] = both[1] = 0;
  for (int i = 0; i < n; i++) {
    MUST(e[i].data.fd == to || e[i].data.fd == copy);
    both[e[i].data.fd == copy]++;
  }
  return n;
}

static int both_told(int copy, int both[2]) {
  return both_in(copy, both, 10000);
}

static int both_told_now(int copy, int both[2]) {
  return both_in(copy, both, 0);
}

static void one_shot_has_fired(void) {
  int both[2];
  MUST(add(set, to, EPOLLIN | EPOLLONESHOT) == 0);
  tell();
  MUST(told(set, to, 10000) == EPOLLIN);
  take();
  int copy = dup(to);
  MUST(add(set, copy, EPOLLIN | EPOLLONESHOT) == 0);
  MUST(change(EPOLL_CTL_MOD, set, to, EPOLLIN | EPOLLONESHOT) == 0);
  tell();
  moment(50);
  MUST(both_told(copy, both) == 2 && both[0] == 1 && both[1] == 1);
  take();
  MUST(change(EPOLL_CTL_DEL, set, copy, 0) == 0);
  MUST(change(EPOLL_CTL_MOD, set, to, EPOLLIN | EPOLLONESHOT) == 0);
  tell();
  moment(50);
  MUST(both_told(copy, both) == 1 && both[0] == 1);
}

/* What was told of stays told when a duplicate comes, or goes. */
static void told_before_the_duplicate(void) {
  int both[2];
  MUST(add(set, to, EPOLLIN | EPOLLOUT | EPOLLET) == 0 && told(set, to, 1000) == EPOLLOUT);
  tell();
  MUST(told(set, to, 1000) == (EPOLLIN | EPOLLOUT));
  int copy = dup(to);
  MUST(add(set, copy, EPOLLIN) == 0);
  MUST(both_told(copy, both) == 1 && both[1] == 1);
  take();
  MUST(both_told_now(copy, both) == 0);
  tell();
  moment(50);
  MUST(both_told(copy, both) == 2);
  take();
  fill(copy);
  while (told(set, to, 30) != 0) {
    fill(copy);
  }
  drain(from);
  MUST(told(set, to, 1000) == EPOLLOUT && told(set, to, 20) == 0);
}

static void number_comes_again(void) {
  for (int i = 0; i < 5; i++) {
    int copy = dup(to);
    MUST(add(set, copy, EPOLLIN) == 0);
    MUST(add(set, copy, EPOLLIN) == -1 && errno == EEXIST);
    tell();
    MUST(told(set, copy, 10000) == EPOLLIN);
    take();
    MUST(change(EPOLL_CTL_DEL, set, copy, 0) == 0);
    MUST(change(EPOLL_CTL_MOD, set, copy, EPOLLIN) == -1 && errno == ENOENT);
    MUST(close(copy) == 0);
  }
}

/* ---- no descriptor is left for a bell ------------------------------------------------------------- */

static void *sleeps(void *argument) {
  (void)argument;
  tid = gettid();
  MUST(told(set, to, 20000) == EPOLLIN);
  return NULL;
}

static void no_bell(void) {
  pthread_t thread;
  struct rlimit limit;
  tell();
  MUST(pthread_create(&thread, NULL, sleeps, NULL) == 0);
  wait_until_asleep(&tid);
  MUST(getrlimit(RLIMIT_NOFILE, &limit) == 0);
  int lowest = dup(0);
  close(lowest);
  limit.rlim_cur = (rlim_t)lowest;
  MUST(setrlimit(RLIMIT_NOFILE, &limit) == 0);
  double begin = seconds();
  MUST(add(set, to, EPOLLIN) == 0 && pthread_join(thread, NULL) == 0);
  MUST(seconds() - begin < 10);
}

/* ---- space ---------------------------------------------------------------------------------------- */

static void *drains(void *argument) {
  int fd = *(int *)argument;
  moment(300);
  MUST(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
  for (double begin = seconds(); seconds() - begin < 1;) {
    if (read(fd, words, sizeof words) <= 0) {
      moment(10);
    }
  }
  return NULL;
}

static void poll_for_normal_space(void) {
  pthread_t thread;
  fill(from);
  MUST(pthread_create(&thread, NULL, drains, &to) == 0);
  struct pollfd p = {.fd = from, .events = POLLWRNORM};
  MUST(poll(&p, 1, 10000) == 1 && (p.revents & POLLWRNORM));
  MUST(pthread_join(thread, NULL) == 0);
}

/* ---- what is an edge for whom --------------------------------------------------------------------- */

static void data_is_no_room(void) {
  MUST(add(set, to, EPOLLOUT | EPOLLET) == 0 && told(set, to, 1000) == EPOLLOUT);
  for (int i = 0; i < 3; i++) {
    tell();
    moment(10);
    MUST(told(set, to, 0) == 0);
    take();
    MUST(told(set, to, 20) == 0);
  }
  fill(to);
  tell();
  moment(10);
  while (told(set, to, 30) != 0) { /* what was taken over while it was filled */
    fill(to);
  }
  drain(from);
  MUST(told(set, to, 1000) == EPOLLOUT && told(set, to, 20) == 0);
  MUST(shutdown(from, SHUT_WR) == 0); /* of an end everybody is told */
  MUST(told(set, to, 1000) == EPOLLOUT && told(set, to, 20) == 0);
}

static void room_is_no_data(void) {
  MUST(add(set, to, EPOLLIN | EPOLLET) == 0 && told(set, to, 20) == 0);
  tell();
  MUST(told(set, to, 1000) == EPOLLIN && told(set, to, 20) == 0);
  fill(to);
  MUST(told(set, to, 0) == 0);
  drain(from);
  MUST(told(set, to, 20) == 0);
  tell();
  MUST(told(set, to, 1000) == EPOLLIN && told(set, to, 20) == 0);
}

/* The first message of a connection is rung for on the kernel's half, too. */
static void told_of_the_first(void) {
  struct sockaddr_in at;
  char byte;
  int listener = pair_listener(&at);
  for (int i = 0; i < 2; i++) {
    int client = socket(AF_INET, SOCK_STREAM, 0);
    MUST(connect(client, (struct sockaddr *)&at, sizeof at) == 0);
    int server = accept(listener, NULL, NULL);
    MUST(write(server, "hello", 5) == 5);
    moment(10);
    MUST(recv(client, &byte, 1, MSG_PEEK) == 1);
    MUST(add(set, client, EPOLLIN | EPOLLOUT | EPOLLET) == 0);
    MUST(told(set, client, 1000) == (EPOLLIN | EPOLLOUT));
    MUST(told(set, client, 0) == 0 && told(set, client, 0) == 0);
    close(client);
    close(server);
  }
}

/* What the kernel holds from before the ring is told of once, too. */
static void told_of_what_was_there(void) {
  struct sockaddr_in at;
  int listener = pair_listener(&at);
  for (int i = 0; i < 4; i++) {
    int client = socket(AF_INET, SOCK_STREAM, 0);
    MUST(connect(client, (struct sockaddr *)&at, sizeof at) == 0);
    bool end = i % 2 == 0;
    MUST(end ? shutdown(client, SHUT_WR) == 0 : write(client, words, 9000) == 9000);
    int server = accept(listener, NULL, NULL);
    moment(10);
    unsigned wanted = i < 2 ? EPOLLOUT : EPOLLIN | EPOLLOUT;
    MUST(add(set, server, wanted | EPOLLET) == 0);
    MUST(told(set, server, 1000) == wanted);
    MUST(told(set, server, 0) == 0 && told(set, server, 0) == 0);
    struct pollfd p = {.fd = set, .events = POLLIN};
    MUST(i < 3 || poll(&p, 1, 0) == 0);
    MUST(write(server, "hello", 5) == 5 && read(client, words, 5) == 5 && told(set, server, 0) == 0);
    close(client);
    close(server);
  }
}

/* Not looked at by the set before: who watches it would see what the kernel had been asked. */
static void told_before_it_is_watched(void) {
  struct sockaddr_in at;
  int client, server, listener = pair_listener(&at);
  client = socket(AF_INET, SOCK_STREAM, 0);
  MUST(connect(client, (struct sockaddr *)&at, sizeof at) == 0);
  MUST((server = accept(listener, NULL, NULL)) >= 0 && write(client, "hello", 5) == 5);
  MUST(add(set, server, EPOLLIN | EPOLLOUT | EPOLLET) == 0);
  moment(10);
  MUST(told(set, server, 1000) == (EPOLLIN | EPOLLOUT));
  struct pollfd p = {.fd = set, .events = POLLIN};
  MUST(poll(&p, 1, 0) == 0 && told(set, server, 0) == 0);
}

/* Told of by the kernel, before the other end has come: no news on the ring. */
static void told_before_the_ring(void) {
  struct sockaddr_in at;
  int listener = pair_listener(&at);
  for (int i = 0; i < 2; i++) {
    int client = socket(AF_INET, SOCK_STREAM, 0);
    MUST(connect(client, (struct sockaddr *)&at, sizeof at) == 0);
    unsigned wanted = i == 0 ? EPOLLOUT : EPOLLIN | EPOLLOUT;
    MUST(add(set, client, wanted | EPOLLET) == 0);
    MUST(told(set, client, 1000) == EPOLLOUT && told(set, client, 0) == 0);
    int server = accept(listener, NULL, NULL);
    MUST(add(set, client, EPOLLIN) == -1 && errno == EEXIST && told(set, client, 0) == 0);
    MUST(write(server, "hello", 5) == 5);
    moment(10);
    MUST(told(set, client, 0) == (i == 0 ? 0 : wanted) && told(set, client, 0) == 0);
    MUST(read(client, words, 5) == 5 && told(set, client, 0) == 0);
    close(client);
    close(server);
  }
}

static void *waits_for_room(void *none) {
  tid = gettid();
  MUST(told(set, to, 10000) == EPOLLOUT);
  return none;
}

/* Of a connection that the kernel carries again. */
static void room_of_the_kernel(void) {
  pthread_t thread;
  int on = 1;
  MUST(setsockopt(to, SOL_SOCKET, SO_TIMESTAMP, &on, sizeof on) == 0);
  MUST(write(to, "hello", 5) == 5 && read(from, words, 5) == 5);
  MUST(add(set, to, EPOLLOUT | EPOLLET) == 0 && told(set, to, 1000) == EPOLLOUT && told(set, to, 0) == 0);
  for (int i = 0; i < 4; i++) {
    fill(to);
    while (told(set, to, 250) != 0) { /* its kernel may be long in acknowledging, by TCP */
      fill(to);
    }
    if (i < 2) {
      drain(from);
      MUST(told(set, to, 1000) == EPOLLOUT && told(set, to, 20) == 0);
      continue;
    }
    tid = 0;
    MUST(pthread_create(&thread, NULL, waits_for_room, NULL) == 0);
    wait_until_asleep(&tid);
    drain(from);
    MUST(pthread_join(thread, NULL) == 0);
  }
}

static void own_shutdown(void) {
  static const int hows[] = {SHUT_WR, SHUT_WR, SHUT_RD, SHUT_RD, SHUT_RDWR};
  MUST(add(set, to, EPOLLOUT | EPOLLET) == 0 && told(set, to, 1000) == EPOLLOUT && told(set, to, 0) == 0);
  for (int i = 0; i < 5; i++) {
    MUST(shutdown(to, hows[i]) == 0);
    MUST(told(set, to, 0) == (i < 2 ? EPOLLOUT : EPOLLOUT | EPOLLHUP));
    while (told(set, to, 60) !=
           0) { /* by TCP it is told once more when the other end's kernel has acknowledged it */
    }
  }
}

/* Who asks for both is told of both, whichever it was. */
static void both_at_once(void) {
  MUST(add(set, to, EPOLLIN | EPOLLOUT | EPOLLET) == 0 && told(set, to, 1000) == EPOLLOUT);
  tell();
  MUST(told(set, to, 1000) == (EPOLLIN | EPOLLOUT) && told(set, to, 20) == 0);
  fill(to);
  while (told(set, to, 30) != 0) {
    fill(to);
  }
  tell();
  MUST(told(set, to, 1000) == EPOLLIN && told(set, to, 20) == 0);
  drain(from);
  MUST(told(set, to, 1000) == (EPOLLIN | EPOLLOUT) && told(set, to, 20) == 0);
}

/* Of more sets than a link has names for. */
static void many_sets(void) {
  static int clients[MANY], servers[MANY], sets[MANY];
  pthread_t thread;
  for (int i = 0; i < MANY; i++) {
    pair_make(&clients[i], &servers[i]);
    sets[i] = epoll_create1(EPOLL_CLOEXEC);
    MUST(sets[i] >= 0 && add(sets[i], clients[i], EPOLLIN | EPOLLOUT | EPOLLET) == 0);
  }
  int last = clients[MANY - 1], its = sets[MANY - 1];
  fill(last);
  while (told(its, last, 0) != 0) {
  }
  MUST(pthread_create(&thread, NULL, drains, &servers[MANY - 1]) == 0);
  MUST(told(its, last, 10000) & EPOLLOUT);
  MUST(pthread_join(thread, NULL) == 0);
}

int main(int argc, char **argv) {
  static const struct {
    const char *name;
    void (*play)(void);
  } scenes[] = {{"end-meanwhile", end_meanwhile},
                {"reset-meanwhile", reset_meanwhile},
                {"one-shot-has-fired", one_shot_has_fired},
                {"told-before-the-duplicate", told_before_the_duplicate},
                {"number-comes-again", number_comes_again},
                {"no-bell", no_bell},
                {"poll-for-normal-space", poll_for_normal_space},
                {"data-is-no-room", data_is_no_room},
                {"room-is-no-data", room_is_no_data},
                {"told-of-the-first", told_of_the_first},
                {"told-of-what-was-there", told_of_what_was_there},
                {"told-before-it-is-watched", told_before_it_is_watched},
                {"told-before-the-ring", told_before_the_ring},
                {"room-of-the-kernel", room_of_the_kernel},
                {"own-shutdown", own_shutdown},
                {"both-at-once", both_at_once},
                {"many-sets", many_sets}};
  MUST(argc == 2);
  pair_make(&from, &to);
  set = epoll_create1(EPOLL_CLOEXEC);
  for (size_t i = 0; i < sizeof scenes / sizeof *scenes; i++) {
    if (strcmp(scenes[i].name, argv[1]) == 0) {
      scenes[i].play();
      printf("ok\n");
      return 0;
    }
  }
  return 2;
}
