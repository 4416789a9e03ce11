/* What a program limits or demands of its memory, with a connection to itself.
 *
 * space: under RLIMIT_AS, most of it is the program's.  small: told to live in little from the start.
 * lock FIRST LATER: mlockall() with these flags before the connection and after it (0: not); what is locked is the
 * program's, and not the room that rings have. */
#include "common.h"

#include <sys/mman.h>
#include <sys/resource.h>

enum { MEGABYTE = 1024 };

static void talk(void) {
  int listening = listen_on(0);
  struct sockaddr_in at;
  socklen_t size = sizeof at;
  MUST(getsockname(listening, (struct sockaddr *)&at, &size) == 0);
  int client = socket(AF_INET, SOCK_STREAM, 0);
  MUST(connect(client, (struct sockaddr *)&at, sizeof at) == 0);
  int server = accept(listening, NULL, NULL);
  char got[8];
  for (int i = 0; i < 3; i++) {
    MUST(send(client, "ask", 3, 0) == 3 && recv(server, got, sizeof got, 0) == 3);
    MUST(send(server, "so", 2, 0) == 2 && recv(client, got, sizeof got, 0) == 2);
  }
}

static long locked_kb(void) {
  char line[200];
  long kb = -1;
  FILE *status = fopen("/proc/self/status", "r");
  MUST(status != NULL);
  while (fgets(line, sizeof line, status) != NULL) {
    sscanf(line, "VmLck: %ld", &kb);
  }
  fclose(status);
  return kb;
}

int main(int argc, char **argv) {
  MUST(argc >= 2);
  if (strcmp(argv[1], "space") == 0) {
    struct rlimit limit = {(rlim_t)3500 << 20, (rlim_t)3500 << 20};
    MUST(setrlimit(RLIMIT_AS, &limit) == 0);
    talk();
    MUST(malloc((size_t)2500 << 20) != NULL);
  } else if (strcmp(argv[1], "lock") == 0) {
    MUST(argc == 4);
    int before = atoi(argv[2]), after = atoi(argv[3]);
    MUST(before == 0 || mlockall(before) == 0);
    talk();
    char *mine = malloc((size_t)20 << 20);
    MUST(mine != NULL);
    MUST(after == 0 || mlockall(after) == 0);
    long kb = locked_kb();
    MUST(kb < 100 * MEGABYTE);
    MUST(((before & MCL_FUTURE) == 0 && after == 0) || kb > 20 * MEGABYTE);
  } else {
    talk();
  }
  puts("ok");
  return 0;
}
