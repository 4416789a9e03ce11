/* PORT SCENE: datagrams that the two ends might take for one another come in the order in which they were sent.  The server
 * receives when it is told to.  Prints ok. */
#include "datagram_ends.h"

#include <sys/sendfile.h>

enum { CLIENTS = 4, ASLEEP_US = 2000 };

struct order {
  int count; /* 0: it ends */
  size_t room;
  bool answers;
};

static int orders[2], done[2];

static void serve_as_told(int fd) {
  struct order o;
  while (read(orders[0], &o, sizeof o) == sizeof o && o.count > 0) {
    for (int i = 0; i < o.count; i++) {
      uint8_t data[BIG];
      struct sockaddr_in from;
      socklen_t size = sizeof from;
      ssize_t n = recvfrom(fd, data, o.room, 0, (struct sockaddr *)&from, &size);
      MUST(n > 0 && write(done[1], data, 1) == 1);
      MUST(!o.answers || sendto(fd, data, (size_t)n, 0, (struct sockaddr *)&from, size) == n);
    }
  }
  exit(0);
}

static pid_t start_at(const struct sockaddr_in *at) {
  MUST(pipe(orders) == 0 && pipe(done) == 0);
  return child(at, false, serve_as_told);
}

static void tell(struct order o) {
  MUST(write(orders[1], &o, sizeof o) == sizeof o);
}

static void hear(const char *expected) {
  for (const char *c = expected; *c != 0; c++) {
    char got;
    MUST(read(done[0], &got, 1) == 1 && got == *c);
  }
}

/* The server receives as many, and they are these. */
static void take(const char *expected) {
  tell((struct order){(int)strlen(expected), BIG, false});
  hear(expected);
}

static void put_big(int fd, char what, const struct sockaddr_in *to) {
  uint8_t data[BIG];
  memset(data, what, sizeof data);
  MUST(sendto(fd, data, sizeof data, 0, (const struct sockaddr *)to, to != NULL ? sizeof *to : 0) == BIG);
}

static void end(pid_t pid) {
  int status;
  tell((struct order){0, 0, false});
  MUST(waitpid(pid, &status, 0) == pid && status == 0);
  close(orders[0]), close(orders[1]), close(done[0]), close(done[1]);
}

/* Both know each other, and the server has been asleep. */
static void get_to_know(int fd, const struct sockaddr_in *to) {
  for (int i = 0; i < 12; i++) {
    uint8_t got[BIG];
    tell((struct order){1, BIG, true});
    usleep(ASLEEP_US);
    put(fd, (char)('a' + i), to);
    hear((char[]){(char)('a' + i), 0});
    MUST(recv(fd, got, sizeof got, 0) == SMALL && got[0] == 'a' + i);
  }
}

/* Several that are alike, of which the server has received one when another one is sent. */
static void alike_after(const char *first) {
  pid_t pid = start_at(&server);
  for (int i = 0; i < CLIENTS; i++) {
    int fd = client_socket(i % 2 == 0);
    const struct sockaddr_in *to = i % 2 == 0 ? NULL : &server;
    put(fd, first[0], to);
    usleep(ASLEEP_US);
    put(fd, 's', to);
    put(fd, 's', to);
    put(fd, 's', to);
    take(first);
    take("s");
    put(fd, 'L', to);
    take("ssL");
    get_to_know(fd, to);
    close(fd);
  }
  end(pid);
}

static void alike(void) {
  alike_after("f");
}

static void alike_at_first(void) { /* four of them */
  alike_after("s");
}

/* One that is received in part looks like the next one. */
static void cut(void) {
  pid_t pid = start_at(&server);
  for (int i = 0; i < CLIENTS; i++) {
    int fd = client_socket(true);
    uint8_t data[BIG];
    memset(data, 'c', sizeof data);
    put(fd, 'f', NULL);
    usleep(ASLEEP_US);
    MUST(send(fd, data, sizeof data, 0) == BIG);
    MUST(send(fd, data, SMALL, 0) == SMALL);
    take("f");
    tell((struct order){1, SMALL, false});
    hear("c");
    put(fd, 'L', NULL);
    take("cL");
    get_to_know(fd, NULL);
    close(fd);
  }
  end(pid);
}

/* Everywhere: what is sent to another address of the server comes to the same socket. */
static void other_address(void) {
  struct sockaddr_in everywhere = server, own = {.sin_family = AF_INET}, other = server;
  everywhere.sin_addr.s_addr = 0;
  own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  other.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1);
  pid_t pid = start_at(&everywhere);
  for (int i = 0; i < CLIENTS; i++) {
    int fd = client_socket(false);
    MUST(bind(fd, (struct sockaddr *)&own, sizeof own) == 0);
    get_to_know(fd, &server);
    for (int k = 0; k < 2; k++) { /* nobody has asked for that address before, and then somebody has */
      put(fd, 'o', &other);
      put_big(fd, 'L', &server);
      take("o");
      put(fd, 'S', &server);
      take("LS");
    }
    close(fd);
  }
  end(pid);
}

/* A child sends by the same socket, and is gone. */
static void child_sends(void) {
  pid_t pid = start_at(&server);
  for (int i = 0; i < CLIENTS; i++) {
    int fd = client_socket(true);
    get_to_know(fd, NULL);
    pid_t other = fork();
    if (other == 0) {
      put(fd, 'c', NULL);
      put(fd, 'd', NULL);
      _exit(0);
    }
    MUST(waitpid(other, NULL, 0) == other);
    put_big(fd, 'L', NULL);
    take("c");
    put(fd, 'S', NULL);
    take("dLS");
    get_to_know(fd, NULL);
    close(fd);
  }
  end(pid);
}

/* The kernel sends by itself (sendfile(2)). */
static bool file_sent(void) {
  bool sends = true;
  char name[] = "/tmp/datagram-XXXXXX";
  int file = mkstemp(name);
  MUST(file >= 0 && unlink(name) == 0 && write(file, "ff", 2) == 2);
  pid_t pid = start_at(&server);
  for (int i = 0; i < CLIENTS && sends; i++) {
    off_t at = 0;
    int fd = client_socket(true);
    get_to_know(fd, NULL);
    sends = sendfile(fd, file, &at, 2) == 2;
    put_big(fd, 'L', NULL);
    take(sends ? "f" : "L");
    put(fd, 'S', NULL);
    take(sends ? "LS" : "S");
    close(fd);
  }
  end(pid);
  close(file);
  return sends;
}

int main(int argc, char **argv) {
  static const struct scene scenes[] = {{"alike", alike, NULL},
                                        {"alike-at-first", alike_at_first, NULL},
                                        {"cut", cut, NULL},
                                        {"other-address", other_address, NULL},
                                        {"child-sends", child_sends, NULL},
                                        {"file-sent", NULL, file_sent}};
  return play(argc, argv, scenes, sizeof scenes / sizeof *scenes);
}
