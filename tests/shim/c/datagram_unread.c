/* PORT SCENE: what becomes of datagrams that their receiver has not read, when he dies, when their sender does nothing but send,
 * closes or ends, and when the socket gets another number.  Each scene holds by the kernel alone, too.  Prints ok. */
#include "datagram_ends.h"

enum { FEW = 5 };

/* All of them come, or it fails. */
static void expect_few(int fd) {
  struct timeval patience = {3, 0};
  uint8_t data[SMALL];
  MUST(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0);
  for (int i = 0; i < FEW; i++) {
    MUST(recv(fd, data, sizeof data, 0) == SMALL && data[0] == 'A' + i);
  }
}

/* Dies while it is awake: it has answered, and naps. */
static void kill_awake(pid_t pid, int fd, const struct sockaddr_in *to) {
  warm_up(fd, to);
  ask(fd, 'n', to);
  MUST(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
}

/* A client that does nothing but send. */
static void only_sends(void) {
  int fd = client_socket(false), status;
  kill_awake(start(), fd, &server);
  pid_t pid = child(&server, false, expect_few);
  for (int i = 0; i < FEW; i++) {
    put(fd, (char)('A' + i), &server);
    usleep(SOON_NS / 1000);
  }
  MUST(waitpid(pid, &status, 0) == pid && status == 0);
  close(fd);
  fd = client_socket(true);
  kill_awake(start(), fd, NULL);
  bool refused = false;
  for (int i = 0; i < 100 && !refused; i++) {
    ssize_t n = send(fd, "abc", 3, 0);
    MUST(n == 3 || errno == ECONNREFUSED);
    refused = n < 0;
    usleep(5000);
  }
  MUST(refused);
}

/* What a client has sent last, to a server that has another one in its place by then: he closes, or ends. */
static void sends_and_leaves(bool closes) {
  int ready[2], go[2], status;
  char byte;
  MUST(pipe(ready) == 0 && pipe(go) == 0);
  pid_t pid = start(), client = fork();
  if (client == 0) {
    int fd = client_socket(false);
    warm_up(fd, &server);
    ask(fd, 'n', &server);
    MUST(write(ready[1], "r", 1) == 1 && read(go[0], &byte, 1) == 1);
    for (int i = 0; i < FEW; i++) {
      put(fd, (char)('A' + i), &server);
    }
    if (closes) {
      close(fd);
      MUST(read(go[0], &byte, 1) == 1);
    }
    exit(0);
  }
  MUST(read(ready[0], &byte, 1) == 1);
  MUST(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
  pid = child(&server, false, expect_few);
  MUST(write(go[1], "g", 1) == 1);
  MUST(waitpid(pid, &status, 0) == pid && status == 0);
  MUST(write(go[1], "g", 1) == 1);
  MUST(waitpid(client, &status, 0) == client && status == 0);
}

static void leaves(void) {
  sends_and_leaves(true);
  sends_and_leaves(false);
}

static bool is_there(int fd) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  return poll(&p, 1, 5000) == 1 && p.revents == POLLIN;
}

/* Another number for the same socket. */
static int move(int fd) {
  int to = dup2(fd, fd < 100 ? fd + 100 : fd - 100);
  MUST(to >= 0 && close(fd) == 0);
  return to;
}

/* It gets another number when what comes behind an 'm' is there. */
static void serve_and_move(int fd) {
  uint8_t data[SMALL];
  for (;;) {
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    MUST(recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&from, &size) == SMALL);
    if (data[0] == 'q') {
      exit(0);
    }
    MUST(sendto(fd, data, sizeof data, 0, (struct sockaddr *)&from, size) == SMALL);
    if (data[0] == 'm') {
      MUST(is_there(fd));
      fd = move(fd);
    }
  }
}

/* What a program has been told of is there under the socket's new number, as is what lies behind it. */
static void new_number(void) {
  pid_t pid = child(&server, false, serve_and_move);
  int fd = client_socket(true);
  uint8_t got[SMALL];
  for (int i = 0; i < 4; i++) {
    warm_up(fd, NULL);
    put(fd, 'm', NULL);
    MUST(recv(fd, got, sizeof got, 0) == SMALL && got[0] == 'm');
    for (int k = 0; k < FEW; k++) {
      put(fd, (char)('A' + k), NULL);
    }
    for (int k = 0; k < FEW; k++) {
      MUST(recv(fd, got, sizeof got, 0) == SMALL && got[0] == 'A' + k);
    }
  }
  for (int i = 0; i < 4; i++) { /* and at the client's end */
    warm_up(fd, NULL);
    put(fd, 'B', NULL);
    put(fd, 'C', NULL);
    MUST(is_there(fd));
    usleep(i % 2 == 0 ? 0 : 1000);
    fd = move(fd);
    put(fd, 'D', NULL);
    for (int k = 1; k < 4; k++) {
      MUST(recv(fd, got, sizeof got, 0) == SMALL && got[0] == 'A' + k);
    }
  }
  finish(pid, &server);
}

/* Told of something, it leaves that to a child. */
static void serve_by_child(int fd) {
  uint8_t data[SMALL];
  for (bool told = false;;) {
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    int status;
    usleep(told ? 2000 : 0); /* it comes while this end is awake, */
    MUST(!told || is_there(fd));
    usleep(told ? 30000 : 0); /* and its sender sleeps meanwhile */
    pid_t reader = told ? fork() : 0;
    if (reader != 0) {
      MUST(waitpid(reader, &status, 0) == reader && status == 0);
      told = false;
      continue;
    }
    MUST(recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&from, &size) == SMALL);
    if (data[0] == 'q') {
      exit(0);
    }
    MUST(sendto(fd, data, sizeof data, 0, (struct sockaddr *)&from, size) == SMALL);
    if (told) {
      exit(0);
    }
    told = data[0] == 'm';
  }
}

static void left_to_child(void) {
  pid_t pid = child(&server, false, serve_by_child);
  int fd = client_socket(true);
  for (int i = 0; i < 3; i++) {
    warm_up(fd, NULL);
    ask(fd, 'm', NULL);
    ask(fd, 'a', NULL);
  }
  finish(pid, &server);
}

int main(int argc, char **argv) {
  static const struct scene scenes[] = {{"only-sends", only_sends, NULL},
                                        {"leaves", leaves, NULL},
                                        {"new-number", new_number, NULL},
                                        {"left-to-child", left_to_child, NULL}};
  return play(argc, argv, scenes, sizeof scenes / sizeof *scenes);
}
