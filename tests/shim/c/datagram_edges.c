/* PORT SCENE: what a UDP socket does at its edges, between two processes of one host.  Each scene holds by the kernel alone,
 * too.  Prints ok; "none" where there is nothing to try it with. */
#include "datagram_ends.h"

/* ---- what another thread does meanwhile ----------------------------------------------------------- */

static void *wait_for_answer(void *given) {
  uint8_t got[BIG];
  MUST(recv(*(int *)given, got, sizeof got, 0) == SMALL && got[0] == 'l');
  return NULL;
}

/* A receive that goes on in the kernel gets its datagram, whatever has become of the descriptor; and what is made in its
 * place is not disturbed. */
static void closed_meanwhile(void) {
  pid_t pid = start();
  for (int i = 0; i < 4; i++) {
    int fd = client_socket(true);
    pthread_t thread;
    warm_up(fd, NULL);
    put(fd, 'l', NULL);
    int given = fd;
    MUST(pthread_create(&thread, NULL, wait_for_answer, &given) == 0);
    usleep(50000);
    close(fd);
    int other = i % 2 == 0 ? client_socket(true) : -1;
    if (other >= 0) {
      warm_up(other, NULL);
    }
    MUST(pthread_join(thread, NULL) == 0);
    if (other >= 0) {
      warm_up(other, NULL);
      close(other);
    }
  }
  finish(pid, &server);
}

static void *only_send(void *given) {
  for (;;) {
    put(*(int *)given, 'x', NULL);
  }
  return NULL;
}

static void swallow(int fd) {
  uint8_t data[BIG];
  while (recv(fd, data, sizeof data, 0) <= 0 || data[0] != 'q') {
  }
}

static void cancelled(void) {
  pid_t pid = child(&server, false, swallow);
  int fd = client_socket(true);
  pthread_t thread;
  alarm(20);
  MUST(pthread_create(&thread, NULL, only_send, &fd) == 0);
  usleep(50000);
  MUST(pthread_cancel(thread) == 0 && pthread_join(thread, NULL) == 0);
  while (waitpid(pid, NULL, WNOHANG) == 0) { /* with its queue full, some are lost */
    send(fd, "q", 1, 0);
    usleep(10000);
  }
}

static _Atomic bool ended;

static void *ask_always(void *given) {
  while (!ended) {
    put(*(int *)given, 'a', &server);
    usleep(1000);
  }
  return NULL;
}

static void *hear_always(void *given) {
  static int64_t longest;
  int64_t last = 0;
  uint8_t got[BIG];
  warm_up(*(int *)given, &server);
  MUST(write(((int *)given)[1], "w", 1) == 1);
  while (!ended) {
    MUST(recv(*(int *)given, got, sizeof got, 0) == SMALL);
    int64_t now = now_ns();
    longest = last != 0 && now - last > longest ? now - last : longest;
    last = now;
  }
  return &longest;
}

/* The agent does not answer who sends somewhere for the first time: nobody else waits for that. */
static void agent_away(void) {
  const char *agent = getenv("AGENT_PID");
  pid_t pid = start(), other = child(&second, false, swallow);
  int fd[2] = {client_socket(false)}, warm[2];
  pthread_t asks, hears;
  char byte;
  void *longest;
  MUST(pipe(warm) == 0);
  fd[1] = warm[1];
  MUST(pthread_create(&hears, NULL, hear_always, fd) == 0 && read(warm[0], &byte, 1) == 1);
  MUST(pthread_create(&asks, NULL, ask_always, fd) == 0);
  usleep(20000);
  MUST(agent == NULL || kill(atoi(agent), SIGSTOP) == 0);
  put(fd[0], 'a', &second);
  MUST(agent == NULL || kill(atoi(agent), SIGCONT) == 0);
  usleep(20000);
  ended = true;
  MUST(pthread_join(asks, NULL) == 0);
  put(fd[0], 'a', &server);
  MUST(pthread_join(hears, &longest) == 0);
  MUST(*(int64_t *)longest < SOON_NS);
  put(fd[0], 'q', &second);
  MUST(waitpid(other, NULL, 0) == other);
  finish(pid, &server);
}

static void *close_it(void *given) {
  MUST(close(*(int *)given) == 0);
  return NULL;
}

static bool is_open(int fd) {
  struct sockaddr_in own;
  socklen_t size = sizeof own;
  return getsockname(fd, (struct sockaddr *)&own, &size) == 0;
}

/* The agent does not answer a child that is the last to close a bound socket, and has to greet it for that: the socket is closed,
 * and the child's own child is made, all the same. */
static void closed_agent_away(void) {
  const char *agent = getenv("AGENT_PID");
  pid_t pid = start();
  int fd = client_socket(true), bound = bound_socket(&second, false), closed[2], status;
  char byte;
  for (int i = 0; i < 5; i++) {
    warm_up(fd, NULL);
  }
  MUST(pipe(closed) == 0);
  pid_t heir = fork();
  if (heir == 0) {
    pthread_t closes;
    MUST(read(closed[0], &byte, 1) == 1);
    MUST(agent == NULL || kill(atoi(agent), SIGSTOP) == 0);
    int64_t before = now_ns();
    MUST(pthread_create(&closes, NULL, close_it, &bound) == 0);
    usleep(20000);
    bool open = is_open(bound);
    pid_t other = fork();
    if (other == 0) {
      _exit(0);
    }
    int64_t took = now_ns() - before;
    MUST(agent == NULL || kill(atoi(agent), SIGCONT) == 0);
    MUST(waitpid(other, NULL, 0) == other && pthread_join(closes, NULL) == 0);
    MUST(!open && took < SOON_NS);
    exit(0);
  }
  close(bound);
  MUST(write(closed[1], "c", 1) == 1);
  MUST(waitpid(heir, &status, 0) == heir && status == 0);
  finish(pid, &server);
}

/* ---- errors and times ----------------------------------------------------------------------------- */

/* The server dies before the two have exchanged much: of questions that differ, two are enough to know each other. */
static void refused(void) {
  for (int questions = 1; questions < 5; questions++) {
    pid_t pid = start();
    int fd = client_socket(true);
    char byte;
    for (int i = 0; i < questions; i++) {
      ask(fd, (char)('r' + i), NULL);
    }
    usleep(20000);
    MUST(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
    MUST(send(fd, "a", 1, 0) == 1);
    MUST(recv(fd, &byte, 1, 0) == -1 && errno == ECONNREFUSED);
    close(fd);
  }
}

/* One thread sleeps in a receive when another one sends to a server that died while it was awake. */
static int given_fd;
static _Atomic bool hears;

static void *hear_refusal(void *how) {
  uint8_t got[2][BIG];
  struct iovec part[2] = {{got[0], BIG}, {got[1], BIG}};
  struct mmsghdr both[2] = {{.msg_hdr = {.msg_iov = &part[0], .msg_iovlen = 1}},
                            {.msg_hdr = {.msg_iov = &part[1], .msg_iovlen = 1}}};
  bool many = how != NULL;
  warm_up(given_fd, NULL);
  put(given_fd, 'n', NULL); /* it answers, and naps */
  MUST(many || recv(given_fd, got[0], BIG, 0) == SMALL);
  hears = true;
  MUST(!many || recvmmsg(given_fd, both, 2, 0, NULL) == 1); /* the refusal is for the next one */
  MUST(recv(given_fd, got[0], BIG, 0) == -1 && errno == ECONNREFUSED);
  return NULL;
}

static void refused_asleep(void *how) {
  pid_t pid = start();
  pthread_t thread;
  given_fd = client_socket(true);
  MUST(pthread_create(&thread, NULL, hear_refusal, how) == 0);
  while (!hears) {
    usleep(100);
  }
  usleep(50000);
  MUST(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
  put(given_fd, 'a', NULL);
  MUST(pthread_join(thread, NULL) == 0);
  close(given_fd);
}

static void refused_meanwhile(void) {
  refused_asleep(NULL);
}

static void refused_behind_another(void) {
  refused_asleep(&given_fd);
}

/* The time limit of a receive, while what was sent is yet to be read. */
static void patience(void) {
  pid_t pid = start();
  int fd = client_socket(true);
  struct timeval short_while = {0, 4000}, long_while = {5, 0};
  int64_t best = INT64_MAX;
  for (int i = 0; i < 8; i++) {
    uint8_t got[SMALL];
    warm_up(fd, NULL);
    ask(fd, 'n', NULL);
    put(fd, 'a', NULL);
    MUST(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &short_while, sizeof short_while) == 0);
    int64_t begin = now_ns();
    MUST(recv(fd, got, sizeof got, 0) == -1 && errno == EAGAIN);
    int64_t took = now_ns() - begin;
    MUST(took >= 3900000);
    best = took < best ? took : best;
    MUST(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &long_while, sizeof long_while) == 0);
    MUST(recv(fd, got, sizeof got, 0) == SMALL);
  }
  MUST(best < 10000000);
  finish(pid, &server);
}

/* ---- one datagram and another ---------------------------------------------------------------------- */

/* What has been looked at is what is read next, whoever sends meanwhile and by whichever way. */
static void looked_at(void) {
  pid_t pid = start(), other = child(&second, false, serve);
  int fd = client_socket(false);
  for (int i = 0; i < 300; i++) {
    uint8_t got[BIG];
    int unread;
    struct pollfd p = {.fd = fd, .events = POLLIN};
    const struct sockaddr_in *first = i % 4 < 2 ? &server : &second, *then = i % 4 < 2 ? &second : &server;
    if (i % 50 == 0) {
      warm_up(fd, &server);
      warm_up(fd, &second);
    }
    ssize_t size = i % 2 == 0 ? BIG : SMALL;
    put(fd, i % 2 == 0 ? 'b' : 'a', first);
    MUST(poll(&p, 1, 5000) == 1);
    if (i % 3 == 0) {
      MUST(ioctl(fd, FIONREAD, &unread) == 0 && unread == size);
    } else {
      MUST(recv(fd, got, sizeof got, MSG_PEEK) == size);
    }
    put(fd, i % 2 == 0 ? 'a' : 'b', then);
    usleep(1000);
    MUST(recv(fd, got, sizeof got, MSG_TRUNC | MSG_PEEK) == size);
    MUST(recv(fd, got, sizeof got, 0) == size);
    MUST(recv(fd, got, sizeof got, 0) == SMALL + BIG - size);
  }
  finish(pid, &server);
  finish(other, &second);
}

/* ---- addresses ------------------------------------------------------------------------------------- */

/* Disconnected, a socket has another port; and who gets the old one gets what is sent there. */
static void disconnected(void) {
  pid_t pid = start();
  for (int i = 0; i < 20; i++) {
    struct sockaddr_in own, again = {.sin_family = AF_INET}, from;
    socklen_t size = sizeof own;
    struct sockaddr nobody = {.sa_family = AF_UNSPEC};
    uint8_t got[SMALL];
    int fd = client_socket(true);
    warm_up(fd, NULL);
    MUST(getsockname(fd, (struct sockaddr *)&own, &size) == 0);
    MUST(connect(fd, &nobody, sizeof nobody) == 0);
    again = own;
    int heir = bound_socket(&again, false);
    put(heir, 'n', &server);
    struct pollfd p = {.fd = heir, .events = POLLIN};
    MUST(poll(&p, 1, SOON_NS / 1000000) == 1);
    size = sizeof from;
    MUST(recvfrom(heir, got, sizeof got, MSG_DONTWAIT, (struct sockaddr *)&from, &size) == SMALL);
    MUST(from.sin_port == server.sin_port);
    MUST(recv(fd, got, sizeof got, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    ask(fd, 'a', &server);
    close(fd);
    close(heir);
  }
  finish(pid, &server);
}

/* A socket for each client, as DTLS servers have it: connected, it gets what its client sends from then on. */
static void serve_each(int fd) {
  uint8_t data[SMALL];
  struct sockaddr_in from;
  socklen_t size = sizeof from;
  for (int i = 0; i < 61; i++) {
    MUST(recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&from, &size) == SMALL);
    if (i < 60) {
      MUST(sendto(fd, data, sizeof data, 0, (struct sockaddr *)&from, size) == SMALL);
    }
  }
  int own = bound_socket(&server, true);
  MUST(connect(own, (struct sockaddr *)&from, size) == 0);
  MUST(send(own, data, sizeof data, 0) == SMALL);
  for (int i = 0; i < 50; i++) {
    usleep(2000);
    ssize_t n = recv(own, data, sizeof data, MSG_DONTWAIT);
    if (n == SMALL) {
      MUST(send(own, data, sizeof data, 0) == SMALL);
    }
    MUST(recv(fd, data, sizeof data, MSG_DONTWAIT) == -1 && errno == EAGAIN);
  }
}

static void socket_for_each(void) {
  pid_t pid = child(&server, true, serve_each);
  int fd = client_socket(true), status;
  warm_up(fd, NULL);
  ask(fd, 'a', NULL);
  for (int i = 0; i < 5; i++) {
    ask(fd, 'a', NULL);
  }
  MUST(waitpid(pid, &status, 0) == pid && status == 0);
}

/* A connected socket sends to somebody else, too, who does not read: what he is sent is for him alone. */
static void elsewhere(void) {
  pid_t pid = start(), other = child(&second, false, serve);
  int fd = client_socket(true);
  uint8_t got[SMALL];
  warm_up(fd, NULL);
  for (int i = 0; i < 5; i++) {
    put(fd, 'a', &second);
    usleep(2000);
  }
  for (int i = 0; i < 3; i++) {
    struct timeval while_ = {0, 50000};
    put(fd, 'n', &second);
    usleep(2000);
    put(fd, 'a', &second);
    MUST(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &while_, sizeof while_) == 0);
    MUST(recv(fd, got, sizeof got, 0) == -1 && errno == EAGAIN); /* and what he answers does not come here */
    usleep(NAP_US);
  }
  close(fd);
  finish(pid, &server);
  finish(other, &second);
}

/* A server of all addresses answers from the one that its routes say, not from the one that it was asked at. */
static bool other_source(void) {
  struct ifaddrs *all, *a;
  struct sockaddr_in at = server, own = {.sin_family = AF_INET}, from;
  own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  at.sin_addr.s_addr = 0;
  MUST(getifaddrs(&all) == 0);
  for (a = all; a != NULL; a = a->ifa_next) {
    if (a->ifa_addr != NULL && a->ifa_addr->sa_family == AF_INET && !(a->ifa_flags & IFF_LOOPBACK)) {
      at.sin_addr = ((struct sockaddr_in *)(void *)a->ifa_addr)->sin_addr;
    }
  }
  freeifaddrs(all);
  if (at.sin_addr.s_addr == 0) {
    return false;
  }
  struct sockaddr_in everywhere = server;
  everywhere.sin_addr.s_addr = 0;
  pid_t pid = child(&everywhere, false, serve);
  int fd = client_socket(false);
  bool late = false;
  MUST(bind(fd, (struct sockaddr *)&own, sizeof own) == 0);
  for (int i = 0; i < 100; i++) {
    uint8_t got[SMALL];
    socklen_t size = sizeof from;
    put(fd, 'a', &at);
    usleep(late ? 3000 : 0);
    MUST(recvfrom(fd, got, sizeof got, 0, (struct sockaddr *)&from, &size) == SMALL);
    MUST(from.sin_addr.s_addr == own.sin_addr.s_addr && from.sin_port == server.sin_port);
    if (i % 10 == 5) {
      usleep(i < 50 ? 3000 : 120000);
      struct pollfd p = {.fd = fd, .events = POLLIN};
      MUST(poll(&p, 1, 2) == 0);
    }
    late = i % 10 == 5; /* awake, when the answer comes */
  }
  finish(pid, &server);
  return true;
}

/* ---- sizes ------------------------------------------------------------------------------------------ */

/* Datagrams that one call makes of a long one (UDP_SEGMENT) come before what is sent next; and parts of one (MSG_MORE) are
 * one. */
static bool in_parts(void) {
  enum { PART = 500, PARTS = 6 };
  pid_t pid = start();
  int fd = client_socket(true);
  uint8_t data[PART * PARTS], got[BIG];
  bool segments = true;
  for (int i = 0; i < 40; i++) {
    if (i % 10 == 0) {
      warm_up(fd, NULL);
    }
    char room[CMSG_SPACE(sizeof(uint16_t))] = {0};
    uint16_t part = PART;
    for (int k = 0; k < PARTS; k++) {
      memset(data + (size_t)k * PART, k == 0 && i % 20 == 0 ? 'n' : 'A' + k, PART);
    }
    struct iovec iov = {data, sizeof data};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_UDP;
    c->cmsg_type = 103; /* UDP_SEGMENT */
    c->cmsg_len = CMSG_LEN(sizeof part);
    memcpy(CMSG_DATA(c), &part, sizeof part);
    if (segments && sendmsg(fd, &msg, 0) != sizeof data) {
      segments = false;
    }
    usleep(i % 20 == 0 ? 50000 : 0); /* the first one has been read then, the others not */
    for (int k = 0; k < 5; k++) {
      put(fd, (char)('V' + k), NULL);
    }
    for (int k = 0; segments && k < PARTS; k++) {
      MUST(recv(fd, got, sizeof got, 0) == PART && got[0] == data[(size_t)k * PART]);
    }
    for (int k = 0; k < 5; k++) {
      MUST(recv(fd, got, sizeof got, 0) == SMALL && got[0] == 'V' + k);
    }
    MUST(send(fd, "xyz", 3, MSG_MORE) == 3);
    usleep(i % 10 == 0 ? 120000 : 0);
    MUST(recv(fd, got, sizeof got, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    MUST(send(fd, "uvw", 3, 0) == 3);
    MUST(recv(fd, got, sizeof got, 0) == 6 && memcmp(got, "xyzuvw", 6) == 0);
  }
  finish(pid, &server);
  return segments;
}

/* Of no bytes, and into no bytes. */
static void nothing_at_all(void) {
  pid_t pid = start();
  bool sends = false;
  int fd = client_socket(true);
  for (int i = 0; i < 50; i++) {
    uint8_t got[SMALL];
    char room[64];
    struct iovec none = {got, 0};
    ask(fd, 'a', NULL);
    put(fd, 'a', NULL);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    MUST(poll(&p, 1, 5000) == 1);
    MUST(read(fd, got, 0) == 0 && readv(fd, &none, 1) == 0);
    struct iovec iov = {got, sizeof got};
    struct msghdr msg = {.msg_namelen = 7,
                         .msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = room,
                         .msg_controllen = sizeof room};
    MUST(recvmsg(fd, &msg, MSG_PEEK) == SMALL && msg.msg_namelen == 7 && msg.msg_controllen == 0);
    MUST(recvmsg(fd, &msg, MSG_CMSG_CLOEXEC) == SMALL && msg.msg_flags == MSG_CMSG_CLOEXEC);
    MUST(send(fd, got, 0, 0) == 0 && recv(fd, got, sizeof got, 0) == 0);
    put(fd, 'a', NULL);
    MUST(recv(fd, got, 0, 0) == 0);
    MUST(write(fd, got, 0) == 0);
    p.revents = 0;
    if (i == 0) { /* as the kernel has it: a datagram or none */
      sends = poll(&p, 1, 200) == 1;
    }
    MUST(!sends || recv(fd, got, sizeof got, 0) == 0);
  }
  finish(pid, &server);
}

static void has_control(int fd, char what) {
  char room[200];
  uint8_t got[SMALL];
  struct iovec iov = {got, sizeof got};
  struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
  MUST(recvmsg(fd, &msg, 0) == SMALL && got[0] == (uint8_t)what && msg.msg_controllen > 0);
}

/* An option is the socket's, whichever number it was set by. */
static void option_of_duplicate(void) {
  pid_t pid = start();
  int fd = client_socket(true), on = 1, status;
  warm_up(fd, NULL);
  int same = dup(fd);
  close(fd);
  warm_up(same, NULL);
  MUST(setsockopt(same, IPPROTO_IP, IP_PKTINFO, &on, sizeof on) == 0);
  for (int i = 0; i < 60; i++) {
    put(same, 'a', NULL);
    usleep(i % 20 == 10 ? 3000 : 0);
    has_control(same, 'a');
  }
  int third = dup(same);
  close(same);
  pid_t heir = fork();
  if (heir != 0) {
    close(third);
    MUST(waitpid(heir, &status, 0) == heir && status == 0);
    finish(pid, &server);
    return;
  }
  usleep(20000); /* now it is the only one to have it */
  for (int i = 0; i < 60; i++) {
    put(third, 'a', NULL);
    has_control(third, 'a');
  }
  exit(0);
}

/* Lengths that no datagram can have, and such whose sum is a small one. */
static void impossible_lengths(void) {
  pid_t pid = start();
  uint8_t data[SMALL] = {0};
  struct iovec wraps[2] = {{data, SIZE_MAX - 7}, {data, 16}}, ends[2] = {{data, 8}, {data, SIZE_MAX - 7}};
  struct iovec halves[2] = {{data, SIZE_MAX / 2 + 1}, {data, SIZE_MAX / 2 - 7}};
  struct iovec *all[] = {wraps, ends, halves};
  volatile size_t too_long = (size_t)1 << 40;
  for (int i = 0; i < 3 * 3; i++) { /* before the two know each other, and then */
    int fd = client_socket(true);
    struct msghdr msg = {.msg_iov = all[i % 3], .msg_iovlen = 2};
    if (i < 3) {
      ask(fd, 'a', NULL);
    } else {
      warm_up(fd, NULL);
    }
    MUST(sendmsg(fd, &msg, 0) == -1 && errno == EINVAL);
    MUST(send(fd, data, too_long, 0) == -1 && (errno == EMSGSIZE || errno == EFAULT));
    ask(fd, 'w', NULL);
    close(fd);
  }
  finish(pid, &server);
}

int main(int argc, char **argv) {
  static const struct scene scenes[] = {{"closed-meanwhile", closed_meanwhile, NULL},
                                        {"cancelled", cancelled, NULL},
                                        {"agent-away", agent_away, NULL},
                                        {"closed-agent-away", closed_agent_away, NULL},
                                        {"refused", refused, NULL},
                                        {"refused-meanwhile", refused_meanwhile, NULL},
                                        {"refused-behind-another", refused_behind_another, NULL},
                                        {"patience", patience, NULL},
                                        {"looked-at", looked_at, NULL},
                                        {"disconnected", disconnected, NULL},
                                        {"socket-for-each", socket_for_each, NULL},
                                        {"elsewhere", elsewhere, NULL},
                                        {"option-of-duplicate", option_of_duplicate, NULL},
                                        {"other-source", NULL, other_source},
                                        {"in-parts", NULL, in_parts},
                                        {"nothing-at-all", nothing_at_all, NULL},
                                        {"impossible-lengths", impossible_lengths, NULL}};
  return play(argc, argv, scenes, sizeof scenes / sizeof *scenes);
}
