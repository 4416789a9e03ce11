/* PORT SCENE [SERVER]: datagrams between two processes of one host; the server is a child that waits by recv (SERVER is
 * block), by epoll, level or edge, or by poll or select.  Prints ok. */
#include "common.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/time.h>

enum { MOST = 4000, BURST = 16 };

static struct sockaddr_in server;

static int bound_socket(void) {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  int room = 4 << 20;
  MUST(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room) == 0);
  MUST(bind(fd, (struct sockaddr *)&server, sizeof server) == 0);
  return fd;
}

static int client_socket(bool connected) {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  struct timeval patience = {20, 0};
  MUST(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0);
  MUST(!connected || connect(fd, (struct sockaddr *)&server, sizeof server) == 0);
  return fd;
}

/* Stopped and continued, these calls are interrupted (signal(7)). */
static void wait_for_one(int fd, int set, const char *by) {
  int n = 1;
  if (strcmp(by, "poll") == 0) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    n = poll(&p, 1, -1);
    MUST(n < 0 || p.revents == POLLIN);
  } else if (strcmp(by, "select") == 0) {
    fd_set in;
    FD_ZERO(&in);
    FD_SET(fd, &in);
    n = select(fd + 1, &in, NULL, NULL, NULL);
    MUST(n < 0 || FD_ISSET(fd, &in));
  } else if (set >= 0) {
    struct epoll_event e;
    n = epoll_wait(set, &e, 1, -1);
    MUST(n < 0 || (e.data.fd == fd && (e.events & EPOLLIN)));
  }
  MUST(n == 1 || (n < 0 && errno == EINTR));
}

/* Answers what begins with an 'a'; a 'q' ends it. */
static void serve(int fd, const char *by, bool naps) {
  int set = -1;
  unsigned chance = 7;
  uint8_t data[MOST];
  if (strcmp(by, "block") != 0) {
    MUST(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
  }
  if (strcmp(by, "level") == 0 || strcmp(by, "edge") == 0) {
    set = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN | (by[0] == 'e' ? EPOLLET : 0), .data.fd = fd};
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0);
  }
  for (;;) {
    wait_for_one(fd, set, by);
    for (;;) {
      struct sockaddr_in from;
      socklen_t size = sizeof from;
      ssize_t n = recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&from, &size);
      if (n < 0) {
        MUST(errno == EAGAIN && strcmp(by, "block") != 0);
        break;
      }
      MUST(size == sizeof from && from.sin_family == AF_INET);
      if (n > 0 && data[0] == 'q') {
        return;
      }
      if (n == 0 || data[0] == 'a') {
        MUST(sendto(fd, data, (size_t)n, 0, (struct sockaddr *)&from, size) == n);
      }
      chance = chance * 1103515245u + 12345u;
      if (naps && chance >> 24 < 6) {
        usleep(chance >> 24 == 0 ? 15000 : chance >> 16 & 255);
      }
    }
  }
}

static pid_t child(void (*run)(int fd, const char *by), const char *by) {
  int bound[2];
  char byte;
  MUST(pipe(bound) == 0);
  pid_t pid = fork();
  if (pid == 0) {
    int fd = bound_socket();
    MUST(write(bound[1], "b", 1) == 1);
    run(fd, by);
    exit(0);
  }
  MUST(read(bound[0], &byte, 1) == 1);
  close(bound[0]);
  close(bound[1]);
  return pid;
}

static void serve_at_once(int fd, const char *by) {
  serve(fd, by, false);
}

static void serve_with_naps(int fd, const char *by) {
  serve(fd, by, true);
}

static pid_t start(const char *by, bool naps) {
  return child(naps ? serve_with_naps : serve_at_once, by);
}

static void fill(uint8_t *data, size_t size, unsigned number) {
  data[0] = 'a';
  for (size_t i = 1; i < size; i++) {
    data[i] = (uint8_t)(number * 31 + i);
  }
}

static void ask(int fd, bool connected, size_t size, unsigned number) {
  uint8_t data[MOST], got[MOST];
  struct sockaddr_in from;
  socklen_t room = sizeof from;
  fill(data, size, number);
  MUST((connected ? send(fd, data, size, 0)
                  : sendto(fd, data, size, 0, (struct sockaddr *)&server, sizeof server)) == (ssize_t)size);
  ssize_t n = recvfrom(fd, got, sizeof got, 0, (struct sockaddr *)&from, &room);
  MUST(n == (ssize_t)size && memcmp(data, got, size) == 0);
  MUST(room == sizeof from && from.sin_port == server.sin_port &&
       from.sin_addr.s_addr == server.sin_addr.s_addr);
}

static void finish(pid_t pid) {
  int status;
  int fd = client_socket(true);
  MUST(send(fd, "q", 1, 0) == 1);
  MUST(waitpid(pid, &status, 0) == pid && status == 0);
  close(fd);
}

static void one_by_one(const char *by) {
  pid_t pid = start(by, false);
  int one = client_socket(true), two = client_socket(false);
  for (unsigned i = 0; i < 2000; i++) {
    ask(one, true, 1 + i % 1500, i);
    ask(two, false, 1 + i % 2500, i);
  }
  finish(pid);
}

/* Bursts of all sizes to a server that naps: those of each client come in order, by whatever way. */
static void in_order(const char *by) {
  enum { CLIENTS = 5, ROUNDS = 400 };
  pid_t pid = start(by, true);
  int fd[CLIENTS];
  uint8_t data[MOST];
  unsigned chance = 3;
  for (int c = 0; c < CLIENTS; c++) {
    fd[c] = client_socket(c % 2 == 0);
  }
  for (unsigned round = 0; round < ROUNDS; round++) {
    unsigned sizes[CLIENTS][BURST];
    for (unsigned k = 0; k < BURST; k++) {
      for (int c = 0; c < CLIENTS; c++) {
        chance = chance * 1103515245u + 12345u;
        unsigned size = 1 + (chance >> 16) % (chance >> 28 == 0 ? MOST - 1 : 300);
        sizes[c][k] = size;
        fill(data, size, round * BURST + k);
        MUST(sendto(fd[c], data, size, 0, c % 2 == 0 ? NULL : (struct sockaddr *)&server,
                    c % 2 == 0 ? 0 : sizeof server) == (ssize_t)size);
      }
    }
    for (int c = 0; c < CLIENTS; c++) {
      for (unsigned k = 0; k < BURST; k++) {
        uint8_t got[MOST];
        fill(data, sizes[c][k], round * BURST + k);
        ssize_t n = recv(fd[c], got, sizeof got, 0);
        MUST(n == (ssize_t)sizes[c][k] && memcmp(got, data, (size_t)n) == 0);
      }
    }
  }
  finish(pid);
}

/* Clients that come and go: a socket for every few questions. */
static void coming_and_going(const char *by) {
  pid_t pid = start(by, false);
  for (unsigned i = 0; i < 400; i++) {
    int fd = client_socket(i % 3 != 0);
    for (unsigned k = 0; k < 5; k++) {
      ask(fd, i % 3 != 0, 50 + i, k);
    }
    close(fd);
  }
  finish(pid);
}

static void warm_up(int fd) {
  for (unsigned i = 0; i < 200; i++) {
    ask(fd, true, 100, i);
  }
}

/* The server is killed: a connected client hears of it, as by the kernel. */
static void killed(const char *by) {
  pid_t pid = start(by, false);
  int fd = client_socket(true);
  warm_up(fd);
  MUST(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
  char byte;
  for (int tries = 0;; tries++) {
    ssize_t sent = send(fd, "a", 1, 0);
    MUST((sent == 1 || errno == ECONNREFUSED) && tries < 4);
    if (sent < 0) {
      break;
    }
    ssize_t n = recv(fd, &byte, 1, 0);
    MUST(n == -1 && errno == ECONNREFUSED);
    break;
  }
  pid = start(by, false); /* another one in its place */
  warm_up(fd);
  finish(pid);
}

/* The server is stopped while it is awake: what waits for it lies in the kernel by and by, and comes in order. */
static void stopped(const char *by) {
  pid_t pid = start(by, false);
  int fd = client_socket(true);
  warm_up(fd);
  MUST(kill(pid, SIGSTOP) == 0);
  int status;
  MUST(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
  uint8_t data[100], got[100];
  for (unsigned i = 0; i < 100; i++) {
    fill(data, sizeof data, i);
    MUST(send(fd, data, sizeof data, 0) == sizeof data);
  }
  struct pollfd p = {.fd = fd, .events = POLLIN};
  MUST(poll(&p, 1, 100) == 0);
  MUST(kill(pid, SIGCONT) == 0);
  for (unsigned i = 0; i < 100; i++) {
    fill(data, sizeof data, i);
    MUST(recv(fd, got, sizeof got, 0) == sizeof got && memcmp(data, got, sizeof got) == 0);
  }
  finish(pid);
}

static void on_alarm(int signal) {
  (void)signal;
}

/* A signal comes while what has been sent is yet to be read. */
static void interrupted(const char *by) {
  pid_t pid = start(by, false);
  int fd = client_socket(true), status;
  struct sigaction act = {.sa_handler = on_alarm};
  struct itimerval soon = {.it_value = {0, 3000}};
  MUST(sigaction(SIGALRM, &act, NULL) == 0);
  for (unsigned i = 0; i < 5; i++) {
    uint8_t data[100], got[100];
    warm_up(fd);
    MUST(kill(pid, SIGSTOP) == 0);
    MUST(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
    fill(data, sizeof data, i);
    MUST(send(fd, data, sizeof data, 0) == sizeof data);
    MUST(setitimer(ITIMER_REAL, &soon, NULL) == 0);
    MUST(recv(fd, got, sizeof got, 0) == -1 && errno == EINTR);
    MUST(kill(pid, SIGCONT) == 0);
    MUST(recv(fd, got, sizeof got, 0) == sizeof got && memcmp(data, got, sizeof got) == 0);
  }
  finish(pid);
}

static void *come_and_go(void *unused) {
  for (unsigned i = 0; i < 5000; i++) {
    int fd = client_socket(true);
    for (unsigned k = 0; k < 2 && i % 50 == 0; k++) {
      ask(fd, true, 100, i + k);
    }
    close(fd);
  }
  return unused;
}

/* Threads make and close sockets of their own, while another one waits for many of its own. */
static void sockets_of_threads(const char *by) {
  enum { MANY = 8, THREADS = 3 };
  pid_t pid = start(by, false);
  pthread_t thread[THREADS];
  int fd[MANY], set = epoll_create1(0);
  for (int i = 0; i < MANY; i++) {
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd[i] = client_socket(true)};
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd[i], &e) == 0);
  }
  for (int i = 0; i < THREADS; i++) {
    MUST(pthread_create(&thread[i], NULL, come_and_go, NULL) == 0);
  }
  for (unsigned i = 0; i < 6000; i++) {
    uint8_t data[100], got[100];
    struct epoll_event e;
    fill(data, sizeof data, i);
    MUST(send(fd[i % MANY], data, sizeof data, 0) == sizeof data);
    MUST(epoll_wait(set, &e, 1, 20000) == 1 && e.data.fd == fd[i % MANY]);
    MUST(recv(e.data.fd, got, sizeof got, 0) == sizeof got && memcmp(data, got, sizeof got) == 0);
  }
  for (int i = 0; i < THREADS; i++) {
    MUST(pthread_join(thread[i], NULL) == 0);
  }
  finish(pid);
}

/* A server's socket that its child goes on with alone. */
static void inherited(const char *by) {
  int fd = bound_socket();
  pid_t pid = fork();
  if (pid == 0) {
    serve(fd, by, false);
    exit(0);
  }
  close(fd);
  int asks = client_socket(true);
  warm_up(asks);
  warm_up(asks);
  finish(pid);
}

/* Alone at first, and then with a child that reads the same socket. */
static void serve_in_two(int fd, const char *by) {
  uint8_t data[MOST];
  for (int i = 0; i < 300; i++) {
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    ssize_t n = recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&from, &size);
    MUST(n > 0 && sendto(fd, data, (size_t)n, 0, (struct sockaddr *)&from, size) == n);
  }
  pid_t other = fork();
  serve(fd, by, false);
  int status;
  MUST(other == 0 || (waitpid(other, &status, 0) == other && status == 0));
}

static void shared(const char *by) {
  pid_t pid = child(serve_in_two, by);
  int asks = client_socket(true);
  for (unsigned i = 0; i < 3000; i++) {
    ask(asks, true, 100, i);
  }
  MUST(send(asks, "q", 1, 0) == 1);
  usleep(20000);
  finish(pid);
}

static void *answer(void *fd) {
  serve(*(int *)fd, "block", false);
  return NULL;
}

static void serve_by_threads(int fd, const char *by) {
  pthread_t thread[3];
  (void)by;
  for (int i = 0; i < 3; i++) {
    MUST(pthread_create(&thread[i], NULL, answer, &fd) == 0);
  }
  for (int i = 0; i < 3; i++) {
    MUST(pthread_join(thread[i], NULL) == 0);
  }
}

static void threads(const char *by) {
  pid_t pid = child(serve_by_threads, by);
  int asks = client_socket(true);
  for (unsigned i = 0; i < 3000; i++) {
    ask(asks, true, 100, i);
  }
  for (int i = 0; i < 2; i++) {
    MUST(send(asks, "q", 1, 0) == 1);
  }
  finish(pid);
}

/* A duplicate, and another number for the same socket, at either end. */
static void serve_elsewhere(int fd, const char *by) {
  int other = dup2(fd, fd + 40);
  MUST(other == fd + 40 && close(fd) == 0);
  serve(other, by, false);
}

static void duplicates(const char *by) {
  pid_t pid = child(serve_elsewhere, by);
  int asks = client_socket(true);
  warm_up(asks);
  int other = dup(asks);
  for (unsigned i = 0; i < 500; i++) {
    ask(i % 2 == 0 ? asks : other, true, 64, i);
  }
  close(asks);
  warm_up(other);
  finish(pid);
}

/* Told of one datagram, a server whose socket blocks takes one, and is told of nothing more until there is more. */
static void serve_one_at_a_time(int fd, const char *by) {
  uint8_t data[MOST];
  for (;;) {
    wait_for_one(fd, -1, by);
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    ssize_t n = recvfrom(fd, data, sizeof data, MSG_DONTWAIT, (struct sockaddr *)&from, &size);
    MUST(n > 0);
    if (data[0] == 'q') {
      return;
    }
    MUST(sendto(fd, data, (size_t)n, 0, (struct sockaddr *)&from, size) == n);
  }
}

static void told_truly(const char *by) {
  pid_t pid = child(serve_one_at_a_time, by);
  int fd = client_socket(true);
  for (unsigned i = 0; i < 3000; i++) {
    ask(fd, true, 100, i);
    if (i % 500 == 0) {
      usleep(3000);
    }
  }
  finish(pid);
}

/* What a program may ask of a socket before it reads. */
static void looks(const char *by) {
  pid_t pid = start(by, false);
  int fd = client_socket(true);
  for (unsigned i = 0; i < 500; i++) {
    uint8_t data[80], got[200];
    int unread = 0;
    fill(data, sizeof data, i);
    MUST(send(fd, data, sizeof data, 0) == sizeof data);
    struct pollfd p = {.fd = fd, .events = POLLIN | POLLOUT};
    while (!(p.revents & POLLIN)) {
      MUST(poll(&p, 1, 20000) == 1 && (p.revents & POLLOUT));
    }
    MUST(ioctl(fd, FIONREAD, &unread) == 0 && unread == sizeof data);
    MUST(recv(fd, got, sizeof got, MSG_PEEK) == sizeof data && memcmp(got, data, sizeof data) == 0);
    MUST(recv(fd, got, 10, MSG_PEEK | MSG_TRUNC) == sizeof data);
    struct iovec iov = {got, 20};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    MUST(recvmsg(fd, &msg, 0) == 20 && (msg.msg_flags & MSG_TRUNC) && msg.msg_controllen == 0);
    MUST(recv(fd, got, sizeof got, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    MUST(poll(&p, 1, 0) == 1 && p.revents == POLLOUT);
  }
  finish(pid);
}

/* A set that is watched by poll, and an option that only the kernel serves. */
static void serve_by_a_watched_set(int fd, const char *by) {
  int set = epoll_create1(0);
  struct epoll_event e = {.events = EPOLLIN};
  (void)by;
  MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0);
  struct pollfd p = {.fd = set, .events = POLLIN};
  uint8_t data[MOST];
  for (;;) {
    MUST(poll(&p, 1, -1) == 1 && epoll_wait(set, &e, 1, 0) >= 0);
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    ssize_t n = recvfrom(fd, data, sizeof data, MSG_DONTWAIT, (struct sockaddr *)&from, &size);
    if (n > 0 && data[0] == 'q') {
      return;
    }
    MUST(n < 0 || sendto(fd, data, (size_t)n, 0, (struct sockaddr *)&from, size) == n);
  }
}

static void kernels_own(const char *by) {
  pid_t pid = child(serve_by_a_watched_set, by);
  int asks = client_socket(true);
  warm_up(asks);
  int on = 1;
  MUST(setsockopt(asks, SOL_SOCKET, SO_TIMESTAMP, &on, sizeof on) == 0);
  for (unsigned i = 0; i < 100; i++) {
    char control[200];
    uint8_t got[100];
    MUST(send(asks, "abc", 3, 0) == 3);
    struct iovec iov = {got, sizeof got};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    MUST(recvmsg(asks, &msg, 0) == 3 && msg.msg_controllen > 0);
  }
  finish(pid);
}

int main(int argc, char **argv) {
  static const struct {
    const char *name;
    void (*run)(const char *by);
  } scenes[] = {{"one-by-one", one_by_one},
                {"in-order", in_order},
                {"coming-and-going", coming_and_going},
                {"killed", killed},
                {"stopped", stopped},
                {"shared", shared},
                {"inherited", inherited},
                {"threads", threads},
                {"duplicates", duplicates},
                {"looks", looks},
                {"kernels-own", kernels_own},
                {"told-truly", told_truly},
                {"interrupted", interrupted},
                {"sockets-of-threads", sockets_of_threads}};
  MUST(argc >= 3);
  server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
  server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  for (size_t i = 0; i < sizeof scenes / sizeof *scenes; i++) {
    if (strcmp(argv[2], scenes[i].name) == 0) {
      scenes[i].run(argc > 3 ? argv[3] : "block");
      puts("ok");
      return 0;
    }
  }
  return 2;
}
