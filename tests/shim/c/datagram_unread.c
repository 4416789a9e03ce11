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
    usleep(20000);
  }
  MUST(waitpid(pid, &status, 0) == pid && status == 0);
  close(fd);
  fd = client_socket(true);
  kill_awake(start(), fd, NULL);
  bool refused = false;
  for (int i = 0; i < 50 && !refused; i++) {
    ssize_t n = send(fd, "abc", 3, 0);
    MUST(n == 3 || errno == ECONNREFUSED);
    refused = n < 0;
    usleep(2000);
  }
  MUST(refused);
}

int main(int argc, char **argv) {
  static const struct scene scenes[] = {{"only-sends", only_sends, NULL}};
  return play(argc, argv, scenes, sizeof scenes / sizeof *scenes);
}
