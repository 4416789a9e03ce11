/* PORT SCENE: who waits for datagrams of one host, and what he is told of.  Each scene holds by the kernel alone, too.
 * Prints ok. */
#include "datagram_ends.h"

/* ---- what is said to be there ------------------------------------------------------------------------ */

/* From a socket of this process's own: it is in the kernel's queue when this returns. */
static void put_by_kernel(int fd, int mine) {
  struct sockaddr_in own;
  socklen_t size = sizeof own;
  MUST(getsockname(fd, (struct sockaddr *)&own, &size) == 0);
  own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  put(mine, 'm', &own);
}

/* A socket that has something never says that there is nothing. */
static void nothing_there(void) {
  pid_t pid = start();
  int fd = client_socket(false), mine = client_socket(false);
  warm_up(fd, &server);
  put_by_kernel(fd, mine);
  for (int i = 0; i < 300; i++) {
    uint8_t got[BIG];
    struct pollfd p = {.fd = fd, .events = POLLIN};
    MUST(recv(fd, got, sizeof got, 0) == SMALL);
    put(fd, 'a', &server);
    MUST(poll(&p, 1, 5000) == 1);
    put_by_kernel(fd, mine);
    MUST(poll(&p, 1, 0) == 1);
    MUST(recv(fd, got, sizeof got, MSG_DONTWAIT) == SMALL);
    put_by_kernel(fd, mine);
    MUST(recv(fd, got, sizeof got, MSG_DONTWAIT) == SMALL);
  }
  finish(pid, &server);
}

/* The same by a set that tells of edges: until there is EAGAIN, it need not tell again. */
static void nothing_by_edges(void) {
  pid_t pid = start();
  int fd = client_socket(false), mine = client_socket(false), set = epoll_create1(0);
  struct epoll_event e = {.events = EPOLLIN | EPOLLET};
  warm_up(fd, &server);
  MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0);
  for (int i = 0; i < 300; i++) {
    uint8_t got[BIG];
    put_by_kernel(fd, mine);
    MUST(epoll_wait(set, &e, 1, 5000) == 1); /* the kernel's edge: what it is of is read later */
    put(fd, 'a', &server);
    MUST(epoll_wait(set, &e, 1, 5000) == 1);
    epoll_wait(set, &e, 1, 0);
    for (int k = 0; k < 2; k++) {
      MUST(recv(fd, got, sizeof got, MSG_DONTWAIT) == SMALL);
    }
    MUST(recv(fd, got, sizeof got, MSG_DONTWAIT) == -1 && errno == EAGAIN);
  }
  finish(pid, &server);
}

/* A set tells of an edge once; or, where what was told of is sent again by the kernel, once more. */
static void edges(void) {
  pid_t pid = start();
  int fd = client_socket(true), set = epoll_create1(0), again = 0;
  struct epoll_event e = {.events = EPOLLIN | EPOLLET};
  uint8_t got[SMALL];
  warm_up(fd, NULL);
  MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0);
  for (int i = 0; i < 200; i++) {
    for (int k = 0; k < 2; k++) {
      put(fd, 'a', NULL);
      MUST(epoll_wait(set, &e, 1, 5000) == 1 && e.events == EPOLLIN);
    }
    for (int k = 0; k < 100; k++) {
      again += epoll_wait(set, &e, 1, 0);
    }
    for (int k = 0; k < 2; k++) {
      MUST(recv(fd, got, sizeof got, 0) == SMALL);
    }
  }
  MUST(again < 100);
  finish(pid, &server);
}

/* ---- before there is a pair, and beside the one that waits ------------------------------------------- */

static int given_fd, work[2];

static void answer_all(int fd) {
  uint8_t data[BIG];
  struct sockaddr_in from;
  socklen_t size = sizeof from;
  ssize_t n;
  while ((n = recvfrom(fd, data, sizeof data, MSG_DONTWAIT, (struct sockaddr *)&from, &size)) >= 0) {
    if (n > 0 && data[0] == 'q') {
      exit(0);
    }
    MUST(sendto(fd, data, (size_t)n, 0, (struct sockaddr *)&from, size) == n);
  }
  MUST(errno == EAGAIN);
}

static void *work_off(void *unused) {
  char byte;
  while (read(work[0], &byte, 1) == 1) {
    answer_all(given_fd);
  }
  return unused;
}

/* One thread waits in the set, and another one receives what it is told of: each time until there is no more. */
static void serve_with_worker(int fd) {
  pthread_t thread;
  int set = epoll_create1(0);
  struct epoll_event e = {.events = EPOLLIN | EPOLLET};
  given_fd = fd;
  MUST(pipe(work) == 0);
  MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0);
  MUST(pthread_create(&thread, NULL, work_off, NULL) == 0);
  for (;;) {
    MUST(epoll_wait(set, &e, 1, -1) == 1 && write(work[1], "w", 1) == 1);
  }
}

/* Who asks waits in no call of ours: what he has sent is answered all the same. */
static void answered_soon(int fd) {
  for (int i = 0; i < 8; i++) {
    uint8_t got[SMALL];
    put(fd, 'a', &server);
    usleep(SOON_NS / 2000);
    MUST(recv(fd, got, sizeof got, MSG_DONTWAIT) == SMALL);
  }
}

static void worker(void) {
  pid_t pid = child(&server, false, serve_with_worker);
  answered_soon(client_socket(false));
  finish(pid, &server);
}

static void *wait_in_set(void *set) {
  static int64_t told;
  struct epoll_event e;
  MUST(epoll_wait(*(int *)set, &e, 1, 5000) == 1 && e.events == EPOLLIN);
  told = now_ns();
  return &told;
}

/* A thread sleeps in a set when another one, which has received till then, puts the socket there. */
static void added_by_another(void) {
  pid_t pid = start();
  int fd = client_socket(true), set = epoll_create1(0), other[2];
  struct epoll_event e = {.events = EPOLLIN};
  pthread_t thread;
  void *told;
  uint8_t got[SMALL];
  MUST(pipe(other) == 0 && epoll_ctl(set, EPOLL_CTL_ADD, other[0], &e) == 0);
  warm_up(fd, NULL);
  MUST(pthread_create(&thread, NULL, wait_in_set, &set) == 0);
  usleep(50000);
  MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0);
  int64_t before = now_ns();
  put(fd, 'n', NULL);
  MUST(pthread_join(thread, &told) == 0);
  MUST(*(int64_t *)told - before < SOON_NS);
  MUST(recv(fd, got, sizeof got, MSG_DONTWAIT) == SMALL);
  finish(pid, &server);
}

/* Put into a set before it is bound, as some loops do; the set is one whose books we keep. */
static void serve_set_first(int unused) {
  int set = epoll_create1(0), other[2], same = dup(set), fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
  struct epoll_event e = {.events = EPOLLIN};
  close(unused);
  close(same);
  MUST(pipe(other) == 0 && epoll_ctl(set, EPOLL_CTL_ADD, other[0], &e) == 0);
  MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0);
  MUST(bind(fd, (struct sockaddr *)&server, sizeof server) == 0);
  for (;;) {
    MUST(epoll_wait(set, &e, 1, -1) == 1);
    answer_all(fd);
  }
}

static void set_first(void) {
  struct sockaddr_in any = server;
  any.sin_port = 0;
  pid_t pid = child(&any, false, serve_set_first);
  usleep(100000);
  answered_soon(client_socket(false));
  finish(pid, &server);
}

static int own_fd[2];

static void receive_in_handler(int signal) {
  uint8_t got[SMALL];
  (void)signal;
  put_by_kernel(own_fd[0], own_fd[1]);
  MUST(recv(own_fd[0], got, sizeof got, 0) == SMALL && got[0] == 'm');
}

/* It answers a 'd' after a while, and then looks nowhere for another. */
static void serve_late(int fd) {
  for (;;) {
    uint8_t data[SMALL];
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    MUST(recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&from, &size) == SMALL);
    if (data[0] == 'q') {
      exit(0);
    }
    usleep(data[0] == 'd' ? 100000 : 0);
    MUST(sendto(fd, data, sizeof data, 0, (struct sockaddr *)&from, size) == SMALL);
    usleep(data[0] == 'd' ? NAP_US : 0);
  }
}

/* The receive that a handler interrupts goes on, as if the handler had not received. */
static void handler(void) {
  pid_t pid = child(&server, false, serve_late);
  struct sigaction act = {.sa_handler = receive_in_handler, .sa_flags = SA_RESTART};
  struct itimerval soon = {.it_value = {0, 50000}};
  own_fd[0] = socket(AF_INET, SOCK_DGRAM, 0);
  own_fd[1] = client_socket(false);
  MUST(sigaction(SIGALRM, &act, NULL) == 0);
  for (int i = 0; i < 3; i++) {
    uint8_t got[SMALL];
    warm_up(own_fd[0], &server);
    int64_t before = now_ns();
    put(own_fd[0], 'd', &server);
    MUST(setitimer(ITIMER_REAL, &soon, NULL) == 0);
    MUST(recv(own_fd[0], got, sizeof got, 0) == SMALL && got[0] == 'd');
    MUST(now_ns() - before < 2 * SOON_NS);
    usleep(NAP_US);
  }
  finish(pid, &server);
}

/* ---- who else may wait ------------------------------------------------------------------------------ */

static bool comes_soon(int fd) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  return poll(&p, 1, SOON_NS / 1000000) == 1;
}

/* SIGIO is asked for of a socket that is in use. */
static void signalled(void) {
  pid_t pid = start();
  int fd = client_socket(true);
  sigset_t io;
  struct timespec soon = {0, SOON_NS};
  uint8_t got[SMALL];
  sigemptyset(&io);
  sigaddset(&io, SIGIO);
  MUST(sigprocmask(SIG_BLOCK, &io, NULL) == 0);
  warm_up(fd, NULL);
  MUST(fcntl(fd, F_SETOWN, getpid()) == 0);
  MUST(fcntl(fd, F_SETFL, O_ASYNC) == 0);
  put(fd, 'n', NULL);
  MUST(sigtimedwait(&io, NULL, &soon) == SIGIO);
  MUST(recv(fd, got, sizeof got, MSG_DONTWAIT) == SMALL);
  finish(pid, &server);
}

/* Another process gets the socket, and waits for what comes. */
static void passed_on(void) {
  int way[2], status;
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, way) == 0);
  pid_t taker = fork();
  if (taker == 0) {
    char byte, room[CMSG_SPACE(sizeof(int))];
    int fd;
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    MUST(recvmsg(way[1], &msg, 0) == 1 && CMSG_FIRSTHDR(&msg) != NULL);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof fd);
    MUST(write(way[1], "r", 1) == 1);
    uint8_t got[SMALL];
    MUST(comes_soon(fd) && recv(fd, got, sizeof got, 0) == SMALL);
    exit(0);
  }
  pid_t pid = start();
  int fd = client_socket(true);
  char byte = 'f', room[CMSG_SPACE(sizeof(int))] = {0};
  warm_up(fd, NULL);
  struct iovec iov = {&byte, 1};
  struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
  struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(sizeof fd);
  memcpy(CMSG_DATA(c), &fd, sizeof fd);
  MUST(sendmsg(way[0], &msg, 0) == 1 && read(way[0], &byte, 1) == 1);
  put(fd, 'n', NULL);
  MUST(waitpid(taker, &status, 0) == taker && status == 0);
  finish(pid, &server);
}

/* A child has it as well, and is the one that waits, while its parent is busy with what came before. */
static void child_waits(void) {
  pid_t pid = start();
  int fd = client_socket(true), go[2], status;
  char byte;
  MUST(pipe(go) == 0);
  warm_up(fd, NULL);
  pid_t other = fork();
  if (other == 0) {
    uint8_t got[SMALL];
    MUST(read(go[0], &byte, 1) == 1);
    MUST(comes_soon(fd) && recv(fd, got, sizeof got, 0) == SMALL);
    exit(0);
  }
  ask(fd, 'a', NULL);
  ask(fd, 'a', NULL);
  MUST(write(go[1], "g", 1) == 1);
  put(fd, 'n', NULL);
  MUST(waitpid(other, &status, 0) == other && status == 0);
  finish(pid, &server);
}

/* What has come before a set is told of it once. */
static void one_shot(void) {
  pid_t pid = start();
  int fd = client_socket(true), set = epoll_create1(0);
  uint8_t got[SMALL];
  warm_up(fd, NULL);
  for (int i = 0; i < 3; i++) {
    struct epoll_event e = {.events = EPOLLIN | EPOLLONESHOT, .data.fd = fd};
    put(fd, 'n', NULL);
    usleep(5000);
    MUST(epoll_ctl(set, i == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &e) == 0);
    MUST(epoll_wait(set, &e, 1, SOON_NS / 1000000) == 1 && e.data.fd == fd && e.events == EPOLLIN);
    MUST(epoll_wait(set, &e, 1, 10) == 0);
    MUST(recv(fd, got, sizeof got, MSG_DONTWAIT) == SMALL);
    usleep(NAP_US);
    warm_up(fd, NULL);
    MUST(epoll_wait(set, &e, 1, 10) == 0);
  }
  finish(pid, &server);
}

/* A program that does not want to read now sleeps, whatever lies there. */
static void paused(void) {
  pid_t pid = start();
  int fd = client_socket(true), set = epoll_create1(0);
  struct epoll_event e = {.events = EPOLLIN};
  uint8_t got[SMALL];
  warm_up(fd, NULL);
  MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0);
  for (int i = 0; i < 2; i++) {
    struct timespec before, after;
    for (int k = 0; k < 2; k++) { /* it comes before the pause, or within it */
      if (k == i) {
        put(fd, 'n', NULL);
        usleep(5000);
      } else {
        e.events = 0;
        MUST(epoll_ctl(set, EPOLL_CTL_MOD, fd, &e) == 0);
      }
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
    MUST(epoll_wait(set, &e, 1, 200) == 0);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
    MUST((after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec < 50000000);
    e.events = EPOLLIN;
    MUST(epoll_ctl(set, EPOLL_CTL_MOD, fd, &e) == 0);
    MUST(epoll_wait(set, &e, 1, 100) == 1 && e.events == EPOLLIN);
    MUST(recv(fd, got, sizeof got, MSG_DONTWAIT) == SMALL);
    usleep(NAP_US);
    warm_up(fd, NULL);
  }
  finish(pid, &server);
}

/* What came before the pause is told of to a thread that sleeps in the set when another one ends the pause. */
static void paused_by_another(void) {
  pid_t pid = start();
  int fd = client_socket(true), set = epoll_create1(0);
  for (int i = 0; i < 3; i++) {
    struct epoll_event e = {.events = EPOLLIN};
    pthread_t thread;
    void *told;
    uint8_t got[SMALL];
    warm_up(fd, NULL);
    MUST(epoll_ctl(set, i == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &e) == 0);
    put(fd, 'n', NULL);
    usleep(5000);
    e.events = 0;
    MUST(epoll_ctl(set, EPOLL_CTL_MOD, fd, &e) == 0);
    MUST(pthread_create(&thread, NULL, wait_in_set, &set) == 0);
    usleep(50000);
    e.events = EPOLLIN;
    int64_t before = now_ns();
    MUST(epoll_ctl(set, EPOLL_CTL_MOD, fd, &e) == 0);
    MUST(pthread_join(thread, &told) == 0);
    MUST(*(int64_t *)told - before < SOON_NS / 2);
    MUST(recv(fd, got, sizeof got, MSG_DONTWAIT) == SMALL);
    usleep(NAP_US);
  }
  finish(pid, &server);
}

/* A filter of system calls ends what passes by memory. */
static void filtered(void) {
  pid_t pid = start();
  int fd = client_socket(true);
  struct sock_filter all = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  struct sock_fprog filter = {1, &all};
  warm_up(fd, NULL);
  MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
  for (int i = 0; i < 3; i++) {
    uint8_t got[SMALL];
    put(fd, 'n', NULL);
    MUST(syscall(SYS_recvfrom, fd, got, sizeof got, 0, NULL, NULL) == SMALL);
  }
  finish(pid, &server);
}

/* Both ends look into their boxes, and the set's thread has waited there. */
static void put_into(int set, int fd) {
  struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
  MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0);
  MUST(epoll_wait(set, &e, 1, 0) == 0);
  warm_up(fd, NULL);
}

static void told_by(int set, int fd) {
  struct epoll_event e;
  uint8_t got[SMALL];
  MUST(epoll_wait(set, &e, 1, 0) == 1 && e.data.fd == fd && e.events == EPOLLIN);
  MUST(recv(fd, got, sizeof got, MSG_DONTWAIT) == SMALL);
  MUST(epoll_wait(set, &e, 1, 0) == 0);
}

/* A set is watched from outside from some time on: there may be something by then, which nobody sends again. */
static void watched_set(void) {
  pid_t pid = start();
  for (int how = 0; how < 5; how++) {
    int fd = client_socket(true), set = epoll_create1(0), outer = epoll_create1(0), other = set;
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = 99}, got[2];
    struct pollfd p = {.fd = set, .events = POLLIN};
    warm_up(fd, NULL);
    MUST(how != 0 || epoll_ctl(outer, EPOLL_CTL_ADD, set, &e) == 0);
    put_into(set, fd);
    put(fd, 'n', NULL);
    usleep(how == 0 ? 0 : 5000);
    if (how < 3) {
      e.events |= how == 2 ? EPOLLET : 0;
      MUST(how == 0 || epoll_ctl(outer, EPOLL_CTL_ADD, set, &e) == 0);
      MUST(epoll_wait(outer, got, 2, SOON_NS / 1000000) == 1);
      MUST(got[0].data.u64 == 99 && got[0].events == EPOLLIN);
      MUST(epoll_wait(outer, got, 2, 0) == (how == 2 ? 0 : 1));
    } else if (how == 3) {
      MUST(poll(&p, 1, SOON_NS / 1000000) == 1 && p.revents == POLLIN);
    } else {
      other = dup(set);
      MUST(epoll_wait(other, got, 2, SOON_NS / 1000000) == 1 && got[0].data.fd == fd);
    }
    told_by(other, fd);
    MUST(epoll_wait(outer, got, 2, 0) == 0 && poll(&p, 1, 0) == 0);
    usleep(NAP_US);
    for (int i = 0; i < 3; i++) {
      put(fd, 'l', NULL); /* answered when somebody sleeps */
      MUST(how >= 3 || epoll_wait(outer, got, 2, SOON_NS / 1000000) == 1);
      MUST(how != 3 || poll(&p, 1, SOON_NS / 1000000) == 1);
      MUST(how != 4 || epoll_wait(other, got, 2, SOON_NS / 1000000) == 1);
      told_by(other, fd);
    }
    close(fd);
    close(set);
    close(outer);
  }
  finish(pid, &server);
}

/* By another number of the set. */
static void duplicate_set(void) {
  pid_t pid = start();
  int fd = client_socket(true), set = epoll_create1(0);
  struct epoll_event e;
  warm_up(fd, NULL);
  put_into(set, fd);
  int same = dup(set);
  put(fd, 'n', NULL);
  MUST(epoll_wait(same, &e, 1, SOON_NS / 1000000) == 1);
  uint8_t got[SMALL];
  MUST(recv(fd, got, sizeof got, MSG_DONTWAIT) == SMALL);
  finish(pid, &server);
}

int main(int argc, char **argv) {
  static const struct scene scenes[] = {{"nothing-there", nothing_there, NULL},
                                        {"nothing-by-edges", nothing_by_edges, NULL},
                                        {"edges", edges, NULL},
                                        {"filtered", filtered, NULL},
                                        {"one-shot", one_shot, NULL},
                                        {"paused", paused, NULL},
                                        {"paused-by-another", paused_by_another, NULL},
                                        {"signalled", signalled, NULL},
                                        {"passed-on", passed_on, NULL},
                                        {"child-waits", child_waits, NULL},
                                        {"duplicate-set", duplicate_set, NULL},
                                        {"worker", worker, NULL},
                                        {"handler", handler, NULL},
                                        {"watched-set", watched_set, NULL},
                                        {"set-first", set_first, NULL},
                                        {"added-by-another", added_by_another, NULL}};
  return play(argc, argv, scenes, sizeof scenes / sizeof *scenes);
}
