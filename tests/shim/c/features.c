/* serve PORT WAY | ask PORT WAY: one feature of sockets at a time, with the answers that Linux gives for TCP: the same
 * program runs over plain TCP as well.  The client echoes, unless its way says otherwise. */
#include "common.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

static int listening;

static void say(int fd, const char *text) {
  MUST(send(fd, text, strlen(text), 0) == (ssize_t)strlen(text));
}

static void hear(int fd, const char *text) {
  char got[64];
  size_t n = strlen(text);
  MUST(recv(fd, got, n, MSG_WAITALL) == (ssize_t)n && memcmp(got, text, n) == 0);
}

/* What is said comes back, and is there when this returns. */
static void echo(int fd, const char *text) {
  say(fd, text);
  struct pollfd p = {.fd = fd, .events = POLLIN};
  MUST(poll(&p, 1, -1) == 1 && p.revents == POLLIN);
}

static void hear_end(int fd) {
  char byte;
  MUST(recv(fd, &byte, 1, 0) == 0);
}

static int next_client(void) {
  int fd = accept(listening, NULL, NULL);
  MUST(fd >= 0);
  say(fd, "*");
  hear(fd, "x");
  return fd;
}

static void serve_oob(int fd) {
  char byte;
  for (int i = 0; i < 3; i++) { /* until it is where it stays */
    hear(fd, "a");
    say(fd, "b");
  }
  struct pollfd p = {.fd = fd, .events = POLLPRI};
  MUST(poll(&p, 1, -1) == 1 && (p.revents & POLLPRI));
  MUST(recv(fd, &byte, 1, MSG_OOB) == 1 && byte == '!');
  hear(fd, "ab");
  hear(fd, "cd");
  say(fd, "ef");
}

static void ask_oob(int fd) {
  for (int i = 0; i < 3; i++) {
    say(fd, "a");
    hear(fd, "b");
  }
  say(fd, "ab");
  MUST(send(fd, "!", 1, MSG_OOB) == 1);
  say(fd, "cd");
  hear(fd, "ef");
}

/* Where a read stops: between what came before the urgent byte and the rest. */
static int at_mark(int fd) {
  int is = -1;
  MUST(ioctl(fd, SIOCATMARK, &is) == 0 && sockatmark(fd) == is);
  return is;
}

static void before_mark(int fd) {
  for (int i = 0; i < 3; i++) {
    hear(fd, "a");
    MUST(at_mark(fd) == 0);
    say(fd, "b");
  }
  struct pollfd p = {.fd = fd, .events = POLLPRI};
  MUST(poll(&p, 1, -1) == 1 && (p.revents & POLLPRI));
  p.events = POLLIN;
  MUST(poll(&p, 1, -1) == 1 && at_mark(fd) == 0);
}

static void to_mark(int fd, int flags) {
  char got[10];
  MUST(recv(fd, got, sizeof got, MSG_PEEK) == 2 && at_mark(fd) == 0);
  MUST(recv(fd, got, 1, 0) == 1 && got[0] == 'a' && at_mark(fd) == 0);
  MUST(recv(fd, got, sizeof got, flags) == 1 && got[0] == 'b' && at_mark(fd) == 1);
}

static void serve_mark(int fd) {
  char byte;
  before_mark(fd);
  to_mark(fd, 0);
  MUST(recv(fd, &byte, 1, MSG_OOB) == 1 && byte == '!' && at_mark(fd) == 1);
  hear(fd, "cd");
  MUST(at_mark(fd) == 0);
  say(fd, "ef");
}

static void serve_mark_of_all(int fd) {
  before_mark(fd);
  to_mark(fd, MSG_WAITALL);
  hear(fd, "cd"); /* without the urgent byte */
  MUST(at_mark(fd) == 0);
  say(fd, "ef");
}

static void serve_mark_inline(int fd) {
  int on = 1;
  MUST(setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on) == 0);
  before_mark(fd);
  to_mark(fd, 0);
  hear(fd, "!cd");
  MUST(at_mark(fd) == 0);
  say(fd, "ef");
}

static void serve_options(int fd) {
  struct tcp_info info;
  socklen_t size = sizeof info;
  int value;
  echo(fd, "a");
  hear(fd, "a");
  memset(&info, 0, sizeof info);
  MUST(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 && size >= 104);
  MUST(info.tcpi_state == TCP_ESTABLISHED && info.tcpi_rtt > 0 && info.tcpi_snd_mss > 0);
  size = sizeof value;
  MUST(getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &value, &size) == 0 && value == AF_INET);
  MUST(getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &value, &size) == 0 && value == IPPROTO_TCP);
  MUST(getsockopt(fd, SOL_SOCKET, SO_TYPE, &value, &size) == 0 && value == SOCK_STREAM);
  MUST(getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &value, &size) == 0 && value == 0);
}

static int set_with(int fd, uint32_t events) {
  int set = epoll_create1(0);
  struct epoll_event e = {.events = events, .data.fd = fd};
  MUST(set >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0);
  return set;
}

static int ready(int set, int ms) {
  struct epoll_event e;
  return epoll_wait(set, &e, 1, ms);
}

static void serve_sets(int fd) {
  int level = set_with(fd, EPOLLIN);
  int edge = set_with(fd, EPOLLIN | EPOLLET);
  MUST(ready(level, 0) == 0 && ready(edge, 0) == 0);
  for (int i = 0; i < 5; i++) {
    echo(fd, "ab");
    MUST(ready(level, -1) == 1 && ready(edge, -1) == 1);
    MUST(ready(level, 0) == 1 && ready(edge, 0) == 0); /* still there; told once */
    hear(fd, "a");
    MUST(ready(level, 0) == 1);
    hear(fd, "b");
    MUST(ready(level, 0) == 0 && ready(edge, 0) == 0);
  }
  MUST(close(level) == 0);
  echo(fd, "c");
  MUST(ready(edge, -1) == 1);
  hear(fd, "c");
}

static void serve_nested(int fd) {
  int inner = set_with(fd, EPOLLIN);
  int outer = set_with(inner, EPOLLIN);
  int outermost = set_with(outer, EPOLLIN);
  struct pollfd p = {.fd = outermost, .events = POLLIN};
  MUST(ready(outermost, 0) == 0 && poll(&p, 1, 0) == 0);
  for (int i = 0; i < 5; i++) {
    say(fd, "a");
    MUST(poll(&p, 1, -1) == 1 && ready(outermost, -1) == 1 && ready(outer, -1) == 1 && ready(inner, -1) == 1);
    hear(fd, "a");
    MUST(ready(inner, 0) == 0 && ready(outermost, 0) == 0);
  }
}

enum { MESSAGES = 200 };
static struct {
  int fd, sets[2], over;
  int count;
} shared;

static void *take_turns(void *which) {
  int set = *(int *)which;
  struct epoll_event e;
  char byte;
  while (epoll_wait(set, &e, 1, -1) == 1 && e.data.fd == shared.fd) {
    if (recv(shared.fd, &byte, 1, MSG_DONTWAIT) == 1) {
      if (__atomic_add_fetch(&shared.count, 1, __ATOMIC_SEQ_CST) == MESSAGES) {
        MUST(eventfd_write(shared.over, 1) == 0);
      } else {
        say(shared.fd, "m");
      }
    }
  }
  return NULL;
}

static void serve_exclusive(int fd) {
  pthread_t threads[2];
  shared.fd = fd;
  shared.over = eventfd(0, 0);
  for (int i = 0; i < 2; i++) {
    struct epoll_event e = {.events = EPOLLIN, .data.fd = shared.over};
    shared.sets[i] = set_with(fd, EPOLLIN | EPOLLEXCLUSIVE);
    int other = epoll_create1(0);
    struct epoll_event wrong = {.events = EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT};
    MUST(epoll_ctl(other, EPOLL_CTL_ADD, fd, &wrong) == -1 && errno == EINVAL && close(other) == 0);
    MUST(epoll_ctl(shared.sets[i], EPOLL_CTL_ADD, shared.over, &e) == 0);
    e = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
    MUST(epoll_ctl(shared.sets[i], EPOLL_CTL_MOD, fd, &e) == -1 && errno == EINVAL); /* epoll_ctl(2) */
    MUST(pthread_create(&threads[i], NULL, take_turns, &shared.sets[i]) == 0);
  }
  say(fd, "m");
  for (int i = 0; i < 2; i++) {
    MUST(pthread_join(threads[i], NULL) == 0);
  }
  MUST(shared.count == MESSAGES);
}

static void on_alarm(int number) {
  (void)number;
}

static void serve_pwait2(int fd) {
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 35)
  struct epoll_event e;
  int set = set_with(fd, EPOLLIN);
  if (epoll_pwait2(set, &e, 1, &(struct timespec){0, 0}, NULL) < 0 && errno == ENOSYS) {
    return;
  }
  MUST(epoll_pwait2(set, &e, 1, &(struct timespec){0, 1000}, NULL) == 0);
  MUST(epoll_pwait2(set, &e, 1, &(struct timespec){0, -1}, NULL) == -1 && errno == EINVAL);
  say(fd, "a");
  MUST(epoll_pwait2(set, &e, 1, NULL, NULL) == 1 && e.events == EPOLLIN && e.data.fd == fd);
  hear(fd, "a");
  sigset_t blocked, none; /* a signal that waits is let in by the mask */
  sigemptyset(&none);
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGALRM);
  MUST(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0 && signal(SIGALRM, on_alarm) != SIG_ERR &&
       raise(SIGALRM) == 0);
  MUST(epoll_pwait2(set, &e, 1, &(struct timespec){30, 0}, &none) == -1 && errno == EINTR);
#else
  (void)fd;
#endif
}

static void serve_vectors(int fd) {
  char got[8];
  struct iovec in = {got, sizeof got}, out = {"abc", 3};
  MUST(preadv2(fd, &in, 1, 0, 0) == -1 && errno == ESPIPE);
  MUST(pwritev2(fd, &out, 1, 0, 0) == -1 && errno == ESPIPE);
  MUST(preadv(fd, &in, 1, 0) == -1 && errno == ESPIPE);
  MUST(pwritev(fd, &out, 1, 0) == -1 && errno == ESPIPE);
  MUST(pread(fd, got, 1, 0) == -1 && errno == ESPIPE && pwrite(fd, got, 1, 0) == -1 && errno == ESPIPE);
  MUST(preadv2(fd, &in, 1, -1, 1 << 30) == -1 && errno == EOPNOTSUPP);
  MUST(pwritev2(fd, &out, 1, -1, 1 << 30) == -1 && errno == EOPNOTSUPP);
  volatile int none = -1;
  MUST(preadv2(fd, &in, none, -1, 0) == -1 && errno == EINVAL);
  MUST(lseek(fd, 0, SEEK_CUR) == -1 && errno == ESPIPE);
  MUST(pwritev2(fd, &out, 1, -1, 0) == 3);
  struct pollfd p = {.fd = fd, .events = POLLIN};
  size_t have = 0;
  while (have < 3) {
    MUST(poll(&p, 1, -1) == 1);
    in = (struct iovec){got + have, sizeof got - have};
    ssize_t n = preadv2(fd, &in, 1, -1, 0);
    MUST(n > 0);
    have += (size_t)n;
  }
  MUST(have == 3 && memcmp(got, "abc", 3) == 0);
}

static void serve_close_range(int fd) {
  MUST(close_range((unsigned)fd, (unsigned)fd, 4 /* CLOSE_RANGE_CLOEXEC */) == 0 || errno == EINVAL);
  echo(fd, "a");
  hear(fd, "a");
  MUST(close_range((unsigned)fd, (unsigned)fd, 0) == 0 || (errno == ENOSYS && close(fd) == 0));
  MUST(send(fd, "b", 1, MSG_NOSIGNAL) == -1 && errno == EBADF);
  fd = next_client();
  int high = dup(fd);
  MUST(high == fd + 1);
  closefrom(fd);
  MUST(send(fd, "b", 1, MSG_NOSIGNAL) == -1 && errno == EBADF && send(high, "b", 1, 0) == -1 &&
       errno == EBADF);
}

enum { MUCH = 3 << 20 };

static void serve_linger(int fd) {
  static char much[MUCH];
  struct linger patient = {1, 20}, got;
  socklen_t size = sizeof got;
  MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &patient, sizeof patient) == 0);
  MUST(getsockopt(fd, SOL_SOCKET, SO_LINGER, &got, &size) == 0 && got.l_onoff == 1 && got.l_linger == 20);
  for (size_t n = 0; n < sizeof much;) {
    ssize_t k = send(fd, much + n, sizeof much - n, 0);
    MUST(k > 0);
    n += (size_t)k;
  }
}

static void ask_linger(int fd) {
  static char much[MUCH + 1];
  MUST(recv(fd, much, sizeof much, MSG_WAITALL) == MUCH); /* all of it, and an end in order */
}

static void serve_fortified(int fd) {
  volatile size_t one = 1;
  char got[8];
  struct pollfd p[1] = {{.fd = fd, .events = POLLIN}};
  struct timespec long_time = {60, 0};
  say(fd, "abc");
  MUST(poll(p, one, -1) == 1 && read(fd, got, one) == 1 && got[0] == 'a');
  MUST(ppoll(p, one, &long_time, NULL) == 1 && recv(fd, got, one, 0) == 1 && got[0] == 'b');
  MUST(recvfrom(fd, got, one, 0, NULL, NULL) == 1 && got[0] == 'c');
  MUST(dprintf(fd, "%s", one ? "d" : "") == 1);
  hear(fd, "d");
}

static void serve_mmsg(int fd) {
  char got[2][8];
  struct iovec out[2] = {{"abc", 3}, {"de", 2}}, in[2] = {{got[0], 3}, {got[1], 2}};
  struct mmsghdr to[2] = {{.msg_hdr = {.msg_iov = &out[0], .msg_iovlen = 1}},
                          {.msg_hdr = {.msg_iov = &out[1], .msg_iovlen = 1}}};
  struct mmsghdr from[2] = {{.msg_hdr = {.msg_iov = &in[0], .msg_iovlen = 1}},
                            {.msg_hdr = {.msg_iov = &in[1], .msg_iovlen = 1}}};
  MUST(sendmmsg(fd, to, 2, 0) == 2 && to[0].msg_len == 3 && to[1].msg_len == 2);
  MUST(recvmmsg(fd, from, 2, MSG_WAITALL, NULL) == 2 && from[0].msg_len == 3 && from[1].msg_len == 2);
  MUST(memcmp(got[0], "abc", 3) == 0 && memcmp(got[1], "de", 2) == 0);
}

/* Several processes, each with a listener of its own for the same port. */
static void serve_port(int port) {
  for (int i = 0; i < 2; i++) {
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
      int on = 1;
      struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
      at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      listening = socket(AF_INET, SOCK_STREAM, 0);
      MUST(setsockopt(listening, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0);
      MUST(bind(listening, (struct sockaddr *)&at, sizeof at) == 0 && listen(listening, 64) == 0);
      printf("listens\n");
      fflush(stdout);
      for (;;) {
        int fd = next_client();
        echo(fd, "a");
        hear(fd, "a");
        close(fd);
      }
    }
  }
  pause();
}

static void ask_echo(int fd) {
  char text[256];
  ssize_t n;
  while ((n = recv(fd, text, sizeof text, 0)) > 0) {
    MUST(send(fd, text, (size_t)n, MSG_NOSIGNAL) == n);
  }
}

static const struct {
  const char *name;
  void (*serve)(int);
  void (*ask)(int);
} ways[] = {{"oob", serve_oob, ask_oob},
            {"mark", serve_mark, ask_oob},
            {"mark-of-all", serve_mark_of_all, ask_oob},
            {"mark-inline", serve_mark_inline, ask_oob},
            {"options", serve_options, ask_echo},
            {"sets", serve_sets, ask_echo},
            {"nested", serve_nested, ask_echo},
            {"exclusive", serve_exclusive, ask_echo},
            {"pwait2", serve_pwait2, ask_echo},
            {"vectors", serve_vectors, ask_echo},
            {"close_range", serve_close_range, ask_echo},
            {"linger", serve_linger, ask_linger},
            {"fortified", serve_fortified, ask_echo},
            {"mmsg", serve_mmsg, ask_echo}};

static void ask(int port, void (*run)(int)) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  MUST(connect(fd, (struct sockaddr *)&to, sizeof to) == 0);
  hear(fd, "*");
  say(fd, "x");
  run(fd);
  MUST(close(fd) == 0);
}

int main(int argc, char **argv) {
  MUST(argc >= 4);
  int port = atoi(argv[2]);
  if (strcmp(argv[3], "port") == 0) {
    serve_port(port);
  }
  for (int count = argc > 4 ? atoi(argv[4]) : 0; count > 0; count--) { /* so many clients */
    ask(port, ask_echo);
  }
  for (size_t i = 0; argc == 4 && i < sizeof ways / sizeof *ways; i++) {
    if (strcmp(argv[3], ways[i].name) != 0) {
      continue;
    }
    if (strcmp(argv[1], "ask") == 0) {
      ask(port, ways[i].ask);
      if (strcmp(argv[3], "close_range") == 0) {
        ask(port, ways[i].ask);
      }
    } else {
      listening = listen_on(port);
      int fd = next_client();
      ways[i].serve(fd);
      if (strcmp(argv[3], "close_range") != 0) {
        if (ways[i].ask == ask_echo) {
          MUST(shutdown(fd, SHUT_WR) == 0);
          hear_end(fd);
        }
        MUST(close(fd) == 0);
      }
    }
  }
  printf("ok\n");
  return 0;
}
