/* way COUNT: so many times a new listener, one connection, both closed; what the process needs for that must not grow.
 *
 * poll: client and server are two processes, with blocking calls.  epoll: the client waits in one set for all.
 * same: both ends in one process.  kept: the client's first connection stays, beyond its listener's end and in a child.
 * threads: as same, in four threads, while another one forks all the time.
 * living: the listeners stay, and COUNT is more than there are descriptors for.
 * late: the parent listens on its sockets after it has forked COUNT children, which accept, each from one. */
#include "common.h"

#include <dirent.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/resource.h>

static int set = -1;

static int descriptors(void) {
  int n = 0;
  DIR *list = opendir("/proc/self/fd");
  MUST(list != NULL);
  while (readdir(list) != NULL) {
    n++;
  }
  closedir(list);
  return n;
}

static int mappings(void) {
  int n = 0;
  FILE *maps = fopen("/proc/self/maps", "r");
  MUST(maps != NULL);
  for (int c; (c = getc(maps)) != EOF;) {
    n += c == '\n';
  }
  fclose(maps);
  return n;
}

/* After the first few, so that what is needed once is there. */
static void measure(int i, int count, const char *who) {
  static int fds, maps;
  if (i == 10) {
    fds = descriptors();
    maps = mappings();
  } else if (i == count - 1) {
    printf("%s: %s\n", who,
           descriptors() <= fds + 4 && mappings() <= maps + 12 ? "no more than before" : "more and more");
    fflush(stdout);
  }
}

static int any_port(int *port) {
  int fd = listen_on(0);
  struct sockaddr_in at;
  socklen_t size = sizeof at;
  MUST(getsockname(fd, (struct sockaddr *)&at, &size) == 0);
  *port = ntohs(at.sin_port);
  return fd;
}

static int connect_to(int port) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  MUST(fd >= 0 && connect(fd, (struct sockaddr *)&at, sizeof at) == 0);
  return fd;
}

static void get(int fd, const char *text) {
  char got[8] = "";
  if (set >= 0) {
    struct epoll_event e;
    MUST(epoll_wait(set, &e, 1, 20000) == 1 && e.data.fd == fd);
  }
  MUST(recv(fd, got, sizeof got, 0) == (ssize_t)strlen(text) && strcmp(got, text) == 0);
}

static void put(int fd, const char *text) {
  MUST(send(fd, text, strlen(text), 0) == (ssize_t)strlen(text));
}

static void ask(int fd) {
  struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
  MUST(set < 0 || epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0);
  for (int i = 0; i < 3; i++) {
    put(fd, "ask");
    get(fd, "answer");
  }
}

static void answer(int fd) {
  for (int i = 0; i < 3; i++) {
    get(fd, "ask");
    put(fd, "answer");
  }
}

static void client(const char *way, int ports, int count) {
  int port;
  int kept = -1;
  if (strcmp(way, "epoll") == 0) {
    set = epoll_create1(0);
    MUST(set >= 0);
  }
  if (strcmp(way, "living") == 0) {
    struct rlimit few = {48, 48};
    MUST(setrlimit(RLIMIT_NOFILE, &few) == 0);
  }
  for (int i = 0; i < count && read(ports, &port, sizeof port) == sizeof port; i++) {
    int fd = connect_to(port);
    ask(fd);
    if (i == 0 && strcmp(way, "kept") == 0) {
      kept = fd;
    } else {
      close(fd);
    }
    if (strcmp(way, "living") != 0) {
      measure(i, count, "client");
    }
  }
  if (kept >= 0) {
    pid_t child = fork();
    if (child == 0) {
      ask(kept);
      _exit(0);
    }
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    ask(kept);
  }
  exit(0);
}

static void rounds(int count, int alone) {
  for (int i = 0; i < count; i++) {
    int port;
    int listening = any_port(&port);
    int fds[2] = {connect_to(port)};
    fds[1] = accept(listening, NULL, NULL);
    MUST(fds[1] >= 0);
    for (int k = 0; k < 3; k++) {
      put(fds[0], "ask");
      get(fds[1], "ask");
      put(fds[1], "answer");
      get(fds[0], "answer");
    }
    close(fds[i & 1]);
    close(listening);
    close(fds[1 - (i & 1)]);
    if (alone) {
      measure(i, count, "both");
    }
  }
}

static volatile int over;
static int each;

static void *a_thread(void *nothing) {
  rounds(each, 0);
  return nothing;
}

static void *fork_on(void *nothing) {
  while (!over) {
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
      _exit(0);
    }
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    usleep(2000);
  }
  return nothing;
}

static void in_threads(int count) {
  pthread_t thread[5];
  each = count / 4;
  MUST(pthread_create(&thread[4], NULL, fork_on, NULL) == 0);
  for (int i = 0; i < 4; i++) {
    MUST(pthread_create(&thread[i], NULL, a_thread, NULL) == 0);
  }
  for (int i = 0; i < 5; i++) {
    MUST(pthread_join(thread[i], NULL) == 0);
    over = i == 3;
  }
  exit(0);
}

/* What the parent notes of its listeners is in memory that the children do not have. */
static void late(int count) {
  enum { MORE = 60000 };
  int go[2];
  MUST(pipe(go) == 0);
  int fd[64];
  pid_t child[64];
  MUST(count <= 64);
  for (int i = 0; i < count; i++) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    fd[i] = socket(AF_INET, SOCK_STREAM, 0);
    MUST(fd[i] >= 0 && bind(fd[i], (struct sockaddr *)&at, sizeof at) == 0);
  }
  for (int i = 0; i < count; i++) {
    child[i] = fork();
    if (child[i] == 0) {
      char byte;
      MUST(read(go[0], &byte, 1) == 1);
      int served = accept(fd[i], NULL, NULL);
      MUST(served >= 0);
      answer(served);
      _exit(0);
    }
  }
  for (int i = 0; i < 8; i++) { /* not freed: the heap grows beyond what was copied */
    MUST(calloc(1, MORE) != NULL);
  }
  for (int i = 0; i < count; i++) {
    MUST(listen(fd[i], 8) == 0);
  }
  for (int i = 0; i < count; i++) {
    MUST(write(go[1], "", 1) == 1);
  }
  for (int i = 0; i < count; i++) {
    struct sockaddr_in at;
    socklen_t size = sizeof at;
    MUST(getsockname(fd[i], (struct sockaddr *)&at, &size) == 0);
    int mine = connect_to(ntohs(at.sin_port));
    close(fd[i]);
    ask(mine);
  }
  for (int i = 0; i < count; i++) {
    int status;
    MUST(waitpid(child[i], &status, 0) == child[i] && status == 0);
  }
}

int main(int argc, char **argv) {
  int ports[2];
  MUST(argc == 3 && pipe(ports) == 0);
  int count = atoi(argv[2]);
  if (strcmp(argv[1], "same") == 0) {
    rounds(count, 1);
    return 0;
  }
  if (strcmp(argv[1], "threads") == 0) {
    in_threads(count);
  }
  if (strcmp(argv[1], "late") == 0) {
    late(count);
    return 0;
  }
  if (fork() == 0) {
    close(ports[1]);
    client(argv[1], ports[0], count);
  }
  close(ports[0]);
  int kept = -1;
  for (int i = 0; i < count; i++) {
    int port;
    int listening = any_port(&port);
    MUST(write(ports[1], &port, sizeof port) == sizeof port);
    int fd = accept(listening, NULL, NULL);
    MUST(fd >= 0);
    answer(fd);
    if (i == 0 && strcmp(argv[1], "kept") == 0) {
      kept = fd;
    } else {
      char end;
      MUST(recv(fd, &end, 1, 0) == 0);
      close(fd);
    }
    if (strcmp(argv[1], "living") != 0) {
      close(listening);
      measure(i, count, "server");
    }
  }
  if (kept >= 0) {
    answer(kept);
    answer(kept);
  }
  int status;
  MUST(wait(&status) > 0);
  return status != 0;
}
