/* calls --requests N: what a connection's calls cost where nothing has to come from another processor.
 *
 * Both ends in one thread, 64 B each way, sent, found and received.  A server that answers as fast as others ask is paid for each
 * request with one send, one recv, a part of an epoll_wait, and the wait for the lines that the other end has written: the last
 * is what is not here.  Prints a JSON object: `pair`, nanoseconds for a send and its recv, and `wait`, for an
 * epoll_wait(2) that finds it (edge-triggered).
 */
#include "common.h"

#include <sys/epoll.h>

enum { MESSAGE = 64 };

static int client, server, set;

static void pass(int from, int to) {
  char message[MESSAGE] = "question";
  send_all(from, message, sizeof message);
  if (recv(to, message, sizeof message, 0) != sizeof message) {
    fail("recv");
  }
}

static void found(void) {
  char message[MESSAGE] = "question";
  struct epoll_event e;
  send_all(client, message, sizeof message);
  if (epoll_wait(set, &e, 1, 1000) != 1 || recv(server, message, sizeof message, 0) != sizeof message) {
    fail("epoll_wait");
  }
}

/* Nanoseconds of one of `count`: a request without or with a wait for it, and its answer. */
static double took(size_t count, int waits) {
  uint64_t begin = now_ns();
  for (size_t i = 0; i < count; i++) {
    if (waits) {
      found();
    } else {
      pass(client, server);
    }
    pass(server, client);
  }
  return (double)(now_ns() - begin) / (double)count;
}

int main(int argc, char **argv) {
  size_t requests = argc == 3 && strcmp(argv[1], "--requests") == 0 ? (size_t)atol(argv[2]) : 0;
  struct target at = parse_target("127.0.0.1:0");
  socklen_t size = sizeof at.addr;
  struct epoll_event e = {.events = EPOLLIN | EPOLLET};
  if (requests == 0) {
    errno = EINVAL;
    fail("calls --requests N");
  }
  int listening = listen_at(&at, 1);
  if (getsockname(listening, (struct sockaddr *)&at.addr, &size) != 0) {
    fail("getsockname");
  }
  client = open_to(&at, 1);
  server = accept(listening, NULL, NULL);
  int on = 1;
  set = epoll_create1(EPOLL_CLOEXEC);
  if (server < 0 || setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0 || set < 0 ||
      epoll_ctl(set, EPOLL_CTL_ADD, server, &e) != 0) {
    fail("a connection");
  }
  took(requests / 10 + 10, 1);
  double pairs = took(requests, 0), with_waits = took(requests, 1);
  printf("{\"pair\": %.1f, \"wait\": %.1f}\n", pairs / 2, with_waits - pairs);
  return 0;
}
