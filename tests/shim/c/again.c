/* serve PORT COUNT: echoes a line on each of so many connections.
 * forks PORT COUNT: the same, while another thread forks all the time.
 * nofork PORT COUNT: the same, but the kernel has no process to give.
 * twice PORT: a client that dissolves its connection by connect() to AF_UNSPEC and connects anew with the same socket. */
#include "common.h"

#include <dlfcn.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static void echo_line(int fd) {
  char text[64];
  size_t have = 0;
  do {
    ssize_t n = recv(fd, text + have, sizeof text - have, 0);
    MUST(n > 0);
    have += (size_t)n;
  } while (text[have - 1] != '\n');
  MUST(send(fd, text, have, 0) == (ssize_t)have);
}

static volatile int over;
static int fails;

/* As a limit on processes does it, which is not for root. */
static void no_processes(void) {
  struct sock_filter is[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAGAIN),
  };
  struct sock_fprog program = {sizeof is / sizeof is[0], is};
  MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  /* The C library's own, past the shim, which would leave a process with a filter alone. */
  int (*libc_prctl)(int, ...) =
      (int (*)(int, ...))dlsym(dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD), "prctl");
  MUST(libc_prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static void *fork_on(void *nothing) {
  if (fails) {
    no_processes();
  }
  while (!over) {
    pid_t child = fork();
    if (fails) {
      MUST(child < 0 && errno == EAGAIN);
      continue;
    }
    MUST(child >= 0);
    if (child == 0) {
      _exit(0);
    }
    int status;
    MUST(waitpid(child, &status, 0) == child);
    usleep(200);
  }
  return nothing;
}

static void serve(int port, int count, int forks) {
  pthread_t thread;
  int listening = listen_on(port);
  MUST(!forks || pthread_create(&thread, NULL, fork_on, NULL) == 0);
  for (; count > 0; count--) {
    int fd = accept(listening, NULL, NULL);
    MUST(fd >= 0);
    echo_line(fd);
    char byte;
    MUST(recv(fd, &byte, 1, 0) <= 0); /* its end, or a reset */
    close(fd);
  }
  over = 1;
  MUST(!forks || pthread_join(thread, NULL) == 0);
}

static void talk(int fd, const char *word) {
  char text[64];
  size_t have = 0, size = strlen(word);
  MUST(send(fd, word, size, 0) == (ssize_t)size);
  while (have < size) {
    ssize_t n = recv(fd, text + have, sizeof text - have, 0);
    MUST(n > 0);
    have += (size_t)n;
  }
  MUST(have == size && memcmp(text, word, size) == 0);
}

int main(int argc, char **argv) {
  MUST(argc >= 3);
  int port = atoi(argv[2]);
  if (strcmp(argv[1], "twice") != 0) {
    MUST(argc == 4);
    fails = strcmp(argv[1], "nofork") == 0;
    serve(port, atoi(argv[3]), fails || strcmp(argv[1], "forks") == 0);
    return 0;
  }
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
  struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  MUST(connect(fd, (struct sockaddr *)&at, sizeof at) == 0);
  talk(fd, "once\n");
  MUST(connect(fd, &nowhere, sizeof nowhere) == 0);
  MUST(send(fd, "x", 1, MSG_NOSIGNAL) < 0 && errno == ECONNRESET);
  MUST(connect(fd, (struct sockaddr *)&at, sizeof at) == 0);
  talk(fd, "again\n");
  close(fd);
  puts("ok");
  return 0;
}
