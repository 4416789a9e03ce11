/* PORT: a server that answers what ends in MARK, and sees to it that there is nothing but x before that.  PORT COUNT: so many
 * processes, one after the other, of which one thread sends and another executes this program again, which says MARK on the
 * same connection. */
#include "common.h"

#include <pthread.h>
#include <stdbool.h>

static char **arguments;
static int connection;

static void serve(int port) {
  int listening = listen_on(port);
  for (;;) {
    int fd = accept(listening, NULL, NULL);
    MUST(fd >= 0);
    static char text[4 + (1 << 16)], like[sizeof text];
    memset(like, 'x', sizeof like);
    memset(text, 'x', 4); /* what may be the mark's, of what came before */
    bool well = true;
    ssize_t n;
    MUST(recv(fd, text, 1, 0) == 1 && send(fd, "*", 1, 0) == 1);
    while ((n = recv(fd, text + 4, sizeof text - 4, 0)) > 0) {
      well &= memcmp(text, like, (size_t)n) == 0;
      memmove(text, text + n, 4);
      if (memcmp(text, "MARK", 4) == 0) {
        MUST(send(fd, well ? "OK" : "no", 2, MSG_NOSIGNAL) == 2);
        break;
      }
    }
    while (recv(fd, text, sizeof text, 0) > 0) {
    }
    close(fd);
  }
}

static void mark(int fd) {
  char got[2];
  alarm(10);
  MUST(send(fd, "MARK", 4, 0) == 4 && recv(fd, got, 2, MSG_WAITALL) == 2 && memcmp(got, "OK", 2) == 0);
}

static void *execute(void *moment) {
  char number[16];
  snprintf(number, sizeof number, "%d", connection);
  usleep(*(useconds_t *)moment);
  execv("/proc/self/exe", (char *[]){arguments[0], "after", number, NULL});
  MUST(false);
  return NULL;
}

static void send_and_execute(int port, useconds_t moment) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  connection = socket(AF_INET, SOCK_STREAM, 0);
  MUST(connect(connection, (struct sockaddr *)&at, sizeof at) == 0);
  char got;
  MUST(send(connection, "x", 1, 0) == 1 && recv(connection, &got, 1, 0) == 1);
  static char text[1 << 18];
  memset(text, 'x', sizeof text);
  pthread_t thread;
  MUST(pthread_create(&thread, NULL, execute, &moment) == 0);
  for (;;) {
    send(connection, text, sizeof text, 0);
  }
}

int main(int argc, char **argv) {
  arguments = argv;
  if (argc == 2) {
    serve(atoi(argv[1]));
  }
  if (strcmp(argv[1], "after") == 0) {
    mark(atoi(argv[2]));
    return 0;
  }
  int well = 0;
  for (int i = 0; i < atoi(argv[2]); i++) {
    pid_t child = fork();
    if (child == 0) {
      send_and_execute(atoi(argv[1]), 20000 + (useconds_t)(i * 997 % 3000));
    }
    int status;
    MUST(waitpid(child, &status, 0) == child);
    well += status == 0;
  }
  printf("well %d\n", well);
  return 0;
}
