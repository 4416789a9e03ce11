/* PORT OTHER: a thread is blocked in a send to a listener at OTHER that accepts nothing, and another one closes its
 * descriptor; the next connection, to an echo server at PORT, may get its record.  The listener ends, and the blocked thread
 * with it; then the connection talks.  Prints whether it has done so in shared memory. */
#include "common.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>

enum { LONG = 16 << 20, ROUNDS = 2000, A_FEW = 1000 };
static int blocked;

static int connect_to(int port) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  MUST(fd >= 0 && connect(fd, (struct sockaddr *)&at, sizeof at) == 0);
  return fd;
}

static void *send_much(void *text) {
  send(blocked, text, LONG, MSG_NOSIGNAL);
  return NULL;
}

int main(int argc, char **argv) {
  MUST(argc == 3);
  int ready[2];
  MUST(pipe(ready) == 0);
  pid_t listener = fork();
  if (listener == 0) {
    listen_on(atoi(argv[2]));
    MUST(write(ready[1], "", 1) == 1);
    for (;;) {
      pause();
    }
  }
  char byte;
  MUST(read(ready[0], &byte, 1) == 1);
  blocked = connect_to(atoi(argv[2]));
  char *text = calloc(1, LONG);
  pthread_t thread;
  MUST(pthread_create(&thread, NULL, send_much, text) == 0);
  usleep(300000);
  close(blocked);
  int fd = connect_to(atoi(argv[1]));
  kill(listener, SIGKILL);
  MUST(waitpid(listener, NULL, 0) == listener && pthread_join(thread, NULL) == 0);
  for (int i = 0; i < ROUNDS; i++) {
    char got[4];
    MUST(send(fd, "word", 4, 0) == 4 && recv(fd, got, 4, MSG_WAITALL) == 4 && memcmp(got, "word", 4) == 0);
  }
  struct tcp_info info;
  socklen_t size = sizeof info;
  MUST(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0);
  puts(info.tcpi_bytes_acked < A_FEW ? "in memory" : "by the kernel");
  return 0;
}
