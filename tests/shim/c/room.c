/* What a program limits or demands of its memory, with a connection to itself.
 *
 * space: under RLIMIT_AS, most of it is the program's.  small: told to live in little from the start.
 * later [child|exec]: RLIMIT_AS is set when the rings are there; a child that does it goes on with its parent's connection.
 * lock FIRST LATER: mlockall() with these flags before the connection and after it (0: not); what is locked is the
 * program's, and not the room that rings have. */
#include "common.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum { MEGABYTE = 1024 };

static int client, server;

static void ask(void) {
  char got[8];
  for (int i = 0; i < 3; i++) {
    MUST(send(client, "ask", 3, 0) == 3 && recv(server, got, sizeof got, 0) == 3);
    MUST(send(server, "so", 2, 0) == 2 && recv(client, got, sizeof got, 0) == 2);
  }
}

static void talk(void) {
  int listening = listen_on(0);
  struct sockaddr_in at;
  socklen_t size = sizeof at;
  MUST(getsockname(listening, (struct sockaddr *)&at, &size) == 0);
  client = socket(AF_INET, SOCK_STREAM, 0);
  MUST(connect(client, (struct sockaddr *)&at, sizeof at) == 0);
  server = accept(listening, NULL, NULL);
  ask();
}

/* The program's own room is what it was told, no more and no less. */
static void limited(rlim_t megabytes) {
  struct rlimit got = {0};
  MUST(getrlimit(RLIMIT_AS, &got) == 0 && got.rlim_cur == megabytes << 20 && got.rlim_max == megabytes << 20);
  MUST(prlimit(0, RLIMIT_AS, NULL, &got) == 0 && got.rlim_max == megabytes << 20);
  void *within = malloc((size_t)(megabytes / 2) << 20);
  MUST(within != NULL);
  void *beyond = malloc((size_t)(megabytes + 100) << 20);
  MUST(beyond == NULL);
  free(within);
}

static int client_before, server_before;

static void later(const char *how) {
  rlim_t first = strcmp(how, "exec") == 0 ? 2000 : 200,
         second = first / 2; /* in less, the next image would not log */
  struct rlimit limit = {first << 20, first << 20}, before = {0};
  talk();
  if (strcmp(how, "child") == 0) {
    pid_t pid = fork();
    int status;
    MUST(pid >= 0);
    if (pid > 0) {
      MUST(waitpid(pid, &status, 0) == pid && status == 0);
      ask();
      return;
    }
  }
  MUST(prlimit(getpid(), RLIMIT_AS, &limit, &before) == 0 && before.rlim_max == RLIM_INFINITY);
  limited(first);
  ask();
  client_before = client;
  server_before = server;
  talk(); /* another listener, whose link would be too much */
  limit.rlim_cur = limit.rlim_max = second << 20;
  MUST(setrlimit(RLIMIT_AS, &limit) == 0);
  limited(second);
  if (strcmp(how, "exec") == 0) {
    char *none[] = {"none", NULL};
    MUST(execv("/nowhere", none) != 0 && errno == ENOENT);
    limited(second);
    char ends[2][12];
    snprintf(ends[0], sizeof ends[0], "%d", client_before);
    snprintf(ends[1], sizeof ends[1], "%d", server_before);
    execl("/proc/self/exe", "room", "after", ends[0], ends[1], NULL);
    MUST(0);
  }
  if (strcmp(how, "child") == 0) {
    exit(0);
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
  } else if (strcmp(argv[1], "after") == 0) {
    struct rlimit got;
    MUST(argc == 4 && getrlimit(RLIMIT_AS, &got) == 0 && got.rlim_cur == (rlim_t)1000 << 20);
    client = atoi(argv[2]);
    server = atoi(argv[3]);
    ask();
  } else if (strcmp(argv[1], "later") == 0) {
    later(argc == 3 ? argv[2] : "");
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
