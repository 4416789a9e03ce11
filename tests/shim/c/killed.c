/* PORT COUNT: a server with a process for each connection, each of which is killed in the middle; at the end it says how
 * much of its table was ever used.  client PORT COUNT: so many connections, one after the other; then, how many links it
 * needed. */
#include "common.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>

static unsigned table_used(void) {
  unsigned head[8] = {0};
  DIR *list = opendir("/proc/self/fd");
  MUST(list != NULL);
  for (struct dirent *e; (e = readdir(list)) != NULL;) {
    char path[PATH_MAX], name[64] = "";
    snprintf(path, sizeof path, "/proc/self/fd/%s", e->d_name);
    if (readlink(path, name, sizeof name - 1) > 0 && strstr(name, "bertha-table") != NULL) {
      int fd = open(path, O_RDONLY);
      MUST(fd >= 0 && pread(fd, head, sizeof head, 0) == sizeof head);
      close(fd);
    }
  }
  closedir(list);
  return head[6];
}

static int links(void) {
  int n = 0;
  char line[400];
  FILE *maps = fopen("/proc/self/maps", "r");
  MUST(maps != NULL);
  while (fgets(line, sizeof line, maps) != NULL) {
    n += strstr(line, "bertha-link") != NULL;
  }
  fclose(maps);
  return n;
}

static void client(int port, int count) {
  for (int i = 0; i < count; i++) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    char got[4];
    MUST(connect(fd, (struct sockaddr *)&at, sizeof at) == 0);
    for (int k = 0; k < 2; k++) {
      MUST(send(fd, "ask", 3, 0) == 3 && recv(fd, got, sizeof got, 0) == 2);
    }
    MUST(send(fd, "end", 3, MSG_NOSIGNAL) == 3);
    MUST(recv(fd, got, sizeof got, 0) <= 0);
    close(fd);
  }
  printf("links %d\n", links());
}

static void answer(int fd) {
  char got[4];
  MUST(recv(fd, got, sizeof got, 0) == 3 && send(fd, "so", 2, 0) == 2);
}

int main(int argc, char **argv) {
  MUST(argc >= 3);
  if (strcmp(argv[1], "client") == 0) {
    client(atoi(argv[2]), atoi(argv[3]));
    return 0;
  }
  int listening = listen_on(atoi(argv[1]));
  for (int count = atoi(argv[2]); count > 0; count--) {
    int fd = accept(listening, NULL, NULL);
    MUST(fd >= 0);
    answer(fd);
    pid_t child = fork();
    if (child == 0) {
      char got[4];
      answer(fd);
      MUST(recv(fd, got, sizeof got, 0) == 3);
      kill(getpid(), SIGKILL);
    }
    close(fd);
    MUST(waitpid(child, NULL, 0) == child);
  }
  printf("used %u\n", table_used());
  return 0;
}
