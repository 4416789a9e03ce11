/* `sandbox [busy|epoll]`: a server that allows itself a few calls, after the first bytes have come. */
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "pair.h"

static const int allowed[] = {SYS_read,       SYS_write, SYS_exit_group, SYS_rt_sigreturn, SYS_epoll_pwait,
#ifdef SYS_epoll_wait
                              SYS_epoll_wait,
#endif
                              SYS_close};
enum { ALLOWED = sizeof allowed / sizeof *allowed };

static void enter(void) {
  struct sock_filter f[2 * ALLOWED + 2];
  unsigned short n = 0;
  f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
  for (int i = 0; i < ALLOWED; i++) {
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)allowed[i], 0, 1);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  }
  f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
  struct sock_fprog program = {n, f};
  MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

/* The other end: waits for an answer, or is busy with something else until the server is in its sandbox. */
static int talk(const struct sockaddr_in *at, int started, int entered, bool busy) {
  char bytes[8] = "";
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  MUST(connect(fd, (const struct sockaddr *)at, sizeof *at) == 0);
  for (int i = 0; i < 3; i++) {
    MUST(write(fd, "ask", 3) == 3 && recv(fd, bytes, 3, MSG_WAITALL) == 3);
  }
  MUST(write(fd, "first", 5) == 5 && write(started, "", 1) == 1);
  if (busy) {
    MUST(read(entered, bytes, 1) == 1);
  }
  MUST(recv(fd, bytes, 2, MSG_WAITALL) == 2 && memcmp(bytes, "ok", 2) == 0);
  MUST(write(fd, "then", 4) == 4);
  MUST(recv(fd, bytes, 3, MSG_WAITALL) == 3 && memcmp(bytes, "bye", 3) == 0);
  return 0;
}

static void get(int epoll, int fd, const char *want, size_t size) {
  char bytes[8];
  size_t got = 0;
  while (got < size) {
    struct epoll_event event;
    if (epoll >= 0 && (epoll_wait(epoll, &event, 1, 5000) != 1 || event.data.u64 != 77)) {
      _exit(3);
    }
    ssize_t n = read(fd, bytes + got, size - got);
    if (n <= 0) {
      _exit(4);
    }
    got += (size_t)n;
  }
  if (memcmp(bytes, want, size) != 0) {
    _exit(5);
  }
}

int main(int count, char **words) {
  bool busy = count > 1 && strcmp(words[1], "busy") == 0;
  int started[2], entered[2], epoll = -1;
  struct sockaddr_in at;
  char bytes[4];
  int listener = pair_listener(&at);
  MUST(pipe(started) == 0 && pipe(entered) == 0);
  pid_t child = fork();
  MUST(child >= 0);
  if (child == 0) {
    close(listener);
    exit(talk(&at, started[1], entered[0], busy));
  }
  int fd = accept(listener, NULL, NULL);
  MUST(fd >= 0);
  for (int i = 0; i < 3; i++) {
    MUST(recv(fd, bytes, 3, MSG_WAITALL) == 3 && write(fd, "say", 3) == 3);
  }
  if (count > 1 && strcmp(words[1], "epoll") == 0) {
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 77};
    epoll = epoll_create1(0);
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
    MUST(epoll_wait(epoll, &event, 1, 5000) == 1);
  }
  MUST(read(started[0], bytes, 1) == 1);
  enter();
  MUST(write(entered[1], "", 1) == 1);
  get(epoll, fd, "first", 5);
  MUST(write(fd, "ok", 2) == 2);
  get(epoll, fd, "then", 4);
  MUST(write(fd, "bye", 3) == 3 && write(1, "ok\n", 3) == 3);
  _exit(0);
}
