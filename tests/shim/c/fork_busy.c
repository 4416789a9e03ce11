/* ADDRESS SECONDS: one thread connects to ever new ports there, while others fork children that connect as well, or run a
 * command by popen() and system(); none of them may wait for what the parent's threads were doing. */
#include "common.h"

#include "pair.h"

#include <fcntl.h>
#include <pthread.h>
#include <time.h>

static const char *address;
static volatile int over;

static void connect_to(int port) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  MUST(fd >= 0 && inet_pton(AF_INET, address, &at.sin_addr) == 1);
  MUST(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
  if (connect(fd, (struct sockaddr *)&at, sizeof at) != 0) {
    MUST(errno == EINPROGRESS || errno == ECONNREFUSED || errno == EHOSTUNREACH);
  }
  close(fd);
}

static void *connects(void *first) {
  for (int port = *(int *)first; !over; port = port < 60000 ? port + 1 : *(int *)first) {
    connect_to(port);
  }
  return NULL;
}

static void *commands(void *nothing) {
  while (!over) {
    FILE *command = popen("true", "r");
    MUST(command != NULL && pclose(command) == 0 && system("true") == 0);
  }
  return nothing;
}

int main(int argc, char **argv) {
  static int first[2] = {10000, 30000};
  pthread_t thread[4];
  MUST(argc == 3);
  int client, server; /* on a ring, and not to be closed by what is executed */
  pair_make(&client, &server);
  address = argv[1];
  time_t end = time(NULL) + atoi(argv[2]);
  MUST(pthread_create(&thread[0], NULL, connects, &first[0]) == 0);
  MUST(pthread_create(&thread[1], NULL, connects, &first[1]) == 0);
  MUST(pthread_create(&thread[2], NULL, commands, NULL) == 0);
  MUST(pthread_create(&thread[3], NULL, commands, NULL) == 0);
  int children = 0;
  while (time(NULL) < end) {
    int status;
    pid_t child = fork();
    if (child == 0) {
      alarm(10); /* far more than it takes */
      connect_to(9);
      FILE *command = children % 8 == 0 ? popen("true", "r") : NULL;
      MUST(command == NULL || pclose(command) == 0);
      _exit(0);
    }
    MUST(waitpid(child, &status, 0) == child);
    MUST(status == 0);
    children++;
  }
  over = 1;
  for (int i = 0; i < 4; i++) {
    MUST(pthread_join(thread[i], NULL) == 0);
  }
  printf("%d children\n", children);
  return 0;
}
