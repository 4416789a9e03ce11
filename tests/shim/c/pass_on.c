/* Accepts connections in one process and passes each on to another one, over a unix socket: "first" before anything
 * was sent, "later" after a line was answered. */
#include "common.h"
#include "rights.h"

/* Up to a line's end; false at the end of the stream. */
static int line(int fd) {
  char text[256];
  size_t have = 0;
  do {
    ssize_t n = recv(fd, text + have, 1, 0);
    MUST(n >= 0);
    if (n == 0) {
      return 0;
    }
  } while (text[have++] != '\n');
  MUST(send(fd, text, have, 0) == (ssize_t)have);
  return 1;
}

int main(int argc, char **argv) {
  int pair[2];
  MUST(argc == 4 && socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
  pid_t worker = fork();
  if (worker == 0) {
    close(pair[0]);
    for (int fd; (fd = take(pair[1])) >= 0; close(fd)) {
      while (line(fd)) {
      }
    }
    exit(0);
  }
  int listening = listen_on(atoi(argv[1]));
  for (int left = atoi(argv[3]); left > 0; left--) {
    int fd = accept(listening, NULL, NULL);
    if (strcmp(argv[2], "later") == 0) {
      MUST(line(fd));
    }
    give(pair[0], fd);
    close(fd);
  }
  close(pair[0]);
  int status;
  MUST(waitpid(worker, &status, 0) == worker && status == 0);
  return 0;
}
