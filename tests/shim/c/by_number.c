/* An echo server, and a client of it, that call the kernel by number alone. */
#include "common.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

static void serve(int port) {
  int listening = listen_on(port);
  int fd = (int)syscall(SYS_accept4, listening, NULL, NULL, SOCK_NONBLOCK);
  MUST(fd >= 0);
  int set = epoll_create1(0);
  struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
  MUST(syscall(SYS_epoll_ctl, set, EPOLL_CTL_ADD, fd, &e) == 0);
  char text[65536];
  for (unsigned round = 0;; round++) {
    MUST(syscall(SYS_epoll_pwait, set, &e, 1, -1, NULL, 8) == 1 && e.data.fd == fd);
    long n = round % 2 ? syscall(SYS_read, fd, text, sizeof text)
                       : syscall(SYS_recvfrom, fd, text, sizeof text, 0, NULL, NULL);
    if (n == 0) {
      break;
    }
    if (n < 0) {
      MUST(errno == EAGAIN);
      continue;
    }
    for (long done = 0; done < n;) {
      struct iovec part = {text + done, (size_t)(n - done)};
      struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
      long k = round % 2 ? syscall(SYS_writev, fd, &part, 1L) : syscall(SYS_sendmsg, fd, &msg, 0L);
      MUST(k > 0 || errno == EAGAIN);
      done += k > 0 ? k : 0;
      struct pollfd p = {.fd = fd, .events = POLLOUT};
      MUST(syscall(SYS_ppoll, &p, 1, NULL, NULL, 8) == 1);
    }
  }
  MUST(syscall(SYS_close, fd) == 0 && syscall(SYS_close, fd) == -1 && errno == EBADF);
}

static void ask(int port) {
  int fd = (int)syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  MUST(syscall(SYS_connect, fd, &to, sizeof to) == 0);
  int other = (int)syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 20);
  int third = (int)syscall(SYS_dup, fd);
  MUST(other >= 20 && third >= 0 && syscall(SYS_dup3, fd, third, O_CLOEXEC) == third);
  for (int i = 0; i < 2000; i++) {
    char out[64], in[64];
    int size = snprintf(out, sizeof out, "message %d", i);
    MUST(syscall(SYS_sendto, i % 2 ? fd : other, out, size, 0, NULL, 0) == size);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(third, &set);
    struct timespec patience = {10, 0};
    MUST(syscall(SYS_pselect6, third + 1, &set, NULL, NULL, &patience, NULL) == 1);
    MUST(syscall(SYS_recvfrom, third, in, sizeof in, 0, NULL, NULL) == size &&
         memcmp(in, out, (size_t)size) == 0);
  }
  MUST(syscall(SYS_shutdown, fd, SHUT_WR) == 0);
  char byte;
  MUST(syscall(SYS_read, other, &byte, 1) == 0);
  printf("ok\n");
  fflush(stdout);
  syscall(SYS_exit_group, 0); /* three descriptors are still open */
}

int main(int argc, char **argv) {
  MUST(argc == 3);
  if (strcmp(argv[1], "serve") == 0) {
    serve(atoi(argv[2]));
  } else {
    ask(atoi(argv[2]));
  }
  return 0;
}
