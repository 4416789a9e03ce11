/* PORT CALL ready|asleep: a thread is cancelled in CALL, where it always finds something to do, or sleeps; afterwards the
 * connection serves others as before.  The client is cancel_client.py: first connection commands, second data. */
#include "common.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/select.h>

static int data, listening, set;
static struct sockaddr_in other; /* a listener that does not accept */
static const char *call;
static char space[1 << 16];
static volatile int tid, rounds;

static int connect_once(void) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  int result = connect(fd, (struct sockaddr *)&other, sizeof other);
  close(fd);
  return result;
}

static long call_once(void) {
  struct epoll_event event;
  struct pollfd p = {.fd = data, .events = POLLIN};
  struct msghdr msg = {.msg_iov = &(struct iovec){space, sizeof space}, .msg_iovlen = 1};
  fd_set in;
  switch (call[0] + call[1]) { /* differs for the names below */
  case 'r' + 'e':
    return strcmp(call, "recv") == 0   ? recv(data, space, sizeof space, 0)
           : strcmp(call, "read") == 0 ? read(data, space, sizeof space)
                                       : recvmsg(data, &msg, 0);
  case 's' + 'e':
    if (strcmp(call, "select") == 0) {
      FD_ZERO(&in);
      FD_SET(data, &in);
      return select(data + 1, &in, NULL, NULL, NULL);
    }
    return send(data, space, sizeof space, 0);
  case 'w' + 'r':
    return write(data, space, sizeof space);
  case 'e' + 'p':
    return epoll_wait(set, &event, 1, -1);
  case 'p' + 'o':
    return poll(&p, 1, -1);
  case 'a' + 'c':
    return accept(listening, NULL, NULL);
  default:
    return connect_once();
  }
}

static void *caller(void *nothing) {
  tid = gettid();
  for (;; rounds++) {
    MUST(call_once() >= 0);
  }
  return nothing;
}

static void wait_until_asleep(void) {
  for (int same = 0; same < 5;) { /* at the same round each time */
    static int last = -1;
    char path[64], text[256] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    FILE *f = tid != 0 ? fopen(path, "r") : NULL;
    char *state = f != NULL && fgets(text, sizeof text, f) != NULL ? strrchr(text, ')') : NULL;
    same = state != NULL && state[2] == 'S' && last == rounds ? same + 1 : 0;
    last = rounds;
    if (f != NULL) {
      fclose(f);
    }
    usleep(1000);
  }
}

static void listen_only(bool full) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  socklen_t size = sizeof other;
  other = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  MUST(bind(fd, (struct sockaddr *)&other, sizeof other) == 0 && listen(fd, full ? 0 : 4096) == 0);
  MUST(getsockname(fd, (struct sockaddr *)&other, &size) == 0);
  for (int i = 0; full && i < 4; i++) {
    int to = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    connect(to, (struct sockaddr *)&other, sizeof other);
  }
}

static int next_client(void) {
  char byte;
  int fd = accept(listening, NULL, NULL);
  MUST(fd >= 0 && write(fd, "*", 1) == 1 && read(fd, &byte, 1) == 1);
  return fd;
}

int main(int argc, char **argv) {
  MUST(argc == 4);
  call = argv[2];
  bool ready = strcmp(argv[3], "ready") == 0;
  listening = listen_on(atoi(argv[1]));
  int control = next_client();
  data = next_client();
  bool sends = strcmp(call, "send") == 0 || strcmp(call, "write") == 0;
  if (ready) {
    MUST(write(control, sends ? "d" : "f", 1) == 1); /* drain, or flood */
  }
  if (strcmp(call, "connect") == 0) {
    listen_only(!ready);
  }
  set = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN};
  MUST(epoll_ctl(set, EPOLL_CTL_ADD, data, &event) == 0);
  pthread_t thread;
  void *result;
  for (int i = 0; i < 3; i++) {
    rounds = tid = 0;
    MUST(pthread_create(&thread, NULL, caller, NULL) == 0);
    if (ready) {
      while (rounds < 50) {
        usleep(200);
      }
    } else {
      wait_until_asleep();
    }
    MUST(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
  }
  MUST(shutdown(data, SHUT_WR) == 0);
  MUST((ready && sends) || write(control, "d", 1) == 1);
  struct pollfd p = {.fd = data, .events = POLLIN};
  ssize_t n;
  MUST(write(control, "e", 1) == 1);
  do { /* until the client's end */
    MUST(epoll_wait(set, &event, 1, -1) == 1 && poll(&p, 1, -1) == 1);
    n = read(data, space, sizeof space);
    MUST(n >= 0);
  } while (n > 0);
  int status;
  pid_t child = fork(); /* nobody is left in the middle of a change to the books */
  if (child == 0) {
    _exit(0);
  }
  MUST(waitpid(child, &status, 0) == child && status == 0);
  close(data);
  close(control);
  printf("ok\n");
  return 0;
}
