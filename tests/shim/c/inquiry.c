/* TCP_INQ: what recvmsg() says of what is left.  `inquiry SCENE` prints what each call said. */
#include <stdbool.h>
#include <sys/epoll.h>

#include "named.h"
#include "pair.h"

static int client, server;

static void ask(int fd, int on) {
  MUST(setsockopt(fd, IPPROTO_TCP, TCP_INQ, &on, sizeof on) == 0);
}

/* -1: nothing was said. */
static int said(const struct msghdr *m) {
  const struct cmsghdr *h = CMSG_FIRSTHDR((struct msghdr *)(uintptr_t)m);
  bool is = h != NULL && h->cmsg_level == SOL_TCP && h->cmsg_type == TCP_CM_INQ;
  return is && h->cmsg_len == CMSG_LEN(sizeof(int)) ? *(const int *)CMSG_DATA(h) : -1;
}

static void take(int fd, size_t size, int flags) {
  static char bytes[65536];
  _Alignas(8) char space[64];
  struct iovec part = {bytes, size};
  struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
  ssize_t n = recvmsg(fd, &m, flags);
  printf("%zd left %d\n", n, n >= 0 ? said(&m) : -1);
}

static void until(int fd, short events) {
  struct pollfd p = {.fd = fd, .events = events};
  MUST(poll(&p, 1, 5000) == 1 && (p.revents & events));
}

static void left(void) {
  ask(client, 1);
  MUST(write(server, "abcdef", 6) == 6);
  until(client, POLLIN);
  take(client, 2, MSG_PEEK);
  take(client, 2, 0);
  take(client, 4, MSG_PEEK);
  take(client, 3, 0);
  take(client, 8, 0);
  take(client, 8, MSG_DONTWAIT);
  ask(client, 0);
  MUST(write(server, "ab", 2) == 2);
  until(client, POLLIN);
  take(client, 1, 0);
  ask(client, 1);
  take(client, 1, 0);
}

static void end(void) {
  ask(client, 1);
  MUST(write(server, "ab", 2) == 2);
  MUST(shutdown(server, SHUT_WR) == 0);
  until(client, POLLRDHUP);
  take(client, 1, 0);
  take(client, 1, 0);
  take(client, 1, 0);
}

static void edge(void) {
  int set = epoll_create1(0);
  struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLET};
  ask(client, 1);
  MUST(epoll_ctl(set, EPOLL_CTL_ADD, client, &e) == 0);
  MUST(write(server, "ab", 2) == 2);
  MUST(shutdown(server, SHUT_WR) == 0);
  until(client, POLLRDHUP);
  MUST(epoll_wait(set, &e, 1, 5000) == 1 && (e.events & EPOLLIN));
  take(client, 2, 0);
  take(client, 2, 0);
}

static void room(void) {
  ask(client, 1);
  MUST(write(server, "abcdef", 6) == 6);
  until(client, POLLIN);
  for (size_t size = 2; size <= CMSG_SPACE(sizeof(int)); size += 2) {
    char byte;
    _Alignas(8) char space[64] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = size};
    MUST(recvmsg(client, &m, MSG_PEEK) == 1);
    const struct cmsghdr *h = (const struct cmsghdr *)(const void *)space;
    printf("%zu: %zu %s %zu %d\n", size, (size_t)m.msg_controllen, m.msg_flags & MSG_CTRUNC ? "cut" : "whole",
           (size_t)h->cmsg_len, *(const int *)CMSG_DATA(h));
  }
}

static void many(void) {
  enum { COUNT = 3 };
  char bytes[COUNT][2];
  _Alignas(8) char space[COUNT][64];
  struct iovec part[COUNT];
  struct mmsghdr m[COUNT];
  ask(client, 1);
  memset(m, 0, sizeof m);
  for (int i = 0; i < COUNT; i++) {
    part[i] = (struct iovec){bytes[i], 2};
    m[i].msg_hdr = (struct msghdr){
        .msg_iov = &part[i], .msg_iovlen = 1, .msg_control = space[i], .msg_controllen = sizeof space[i]};
  }
  MUST(write(server, "abcdefg", 7) == 7);
  until(client, POLLIN);
  MUST(recvmmsg(client, m, COUNT, 0, NULL) == COUNT);
  for (int i = 0; i < COUNT; i++) {
    printf("%u left %d\n", m[i].msg_len, said(&m[i].msg_hdr));
  }
}

/* As gRPC reads: on until nothing is left, without a last read that finds nothing, and then to the next edge. */
enum { BYTES = 24 << 20 };

static void *pour(void *unused) {
  static uint8_t bytes[40000];
  unsigned x = 1;
  for (size_t sent = 0; sent < BYTES;) {
    x = x * 1103515245u + 12345u;
    size_t size = (x >> 16) % 4 == 0 ? (x >> 8) % sizeof bytes : (x >> 8) % 100 + 1;
    size = size < BYTES - sent ? size : BYTES - sent;
    for (size_t i = 0; i < size; i++) {
      bytes[i] = (uint8_t)((sent + i) % 251);
    }
    for (size_t done = 0; done < size;) {
      ssize_t n = write(server, bytes + done, size - done);
      MUST(n > 0);
      done += (size_t)n;
    }
    sent += size;
    if ((x >> 20) % 64 == 0) {
      usleep(200);
    }
  }
  MUST(shutdown(server, SHUT_WR) == 0);
  return unused;
}

static void edges(void) {
  static uint8_t bytes[8192];
  _Alignas(8) char space[64];
  pthread_t thread;
  int set = epoll_create1(0);
  struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
  MUST(fcntl(client, F_SETFL, O_NONBLOCK) == 0);
  ask(client, 1);
  MUST(epoll_ctl(set, EPOLL_CTL_ADD, client, &e) == 0);
  MUST(pthread_create(&thread, NULL, pour, NULL) == 0);
  size_t got = 0;
  for (bool over = false; !over;) {
    MUST(epoll_wait(set, &e, 1, 10000) == 1);
    for (int more = e.events & EPOLLIN ? 1 : 0; more > 0 && !over;) {
      struct iovec part = {bytes, sizeof bytes};
      struct msghdr m = {
          .msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
      ssize_t n = recvmsg(client, &m, 0);
      if (n < 0) {
        MUST(errno == EAGAIN);
        break;
      }
      more = said(&m);
      MUST(more >= 0);
      for (ssize_t i = 0; i < n; i++) {
        MUST(bytes[i] == (uint8_t)((got + (size_t)i) % 251));
      }
      got += (size_t)n;
      over = n == 0;
    }
  }
  MUST(got == BYTES && pthread_join(thread, NULL) == 0);
  puts("all");
}

/* Asked of a listener, it holds for those whom it lets in. */
static void let_in(void) {
  struct sockaddr_in at;
  int listening = pair_listener(&at);
  ask(listening, 1);
  close(client);
  close(server);
  pair_of(listening, &at, &server, &client); /* who reads is the one that was let in */
  MUST(write(server, "abc", 3) == 3);
  until(client, POLLIN);
  take(client, 1, 0);
}

static const struct named scenes[] = {{"left", left}, {"end", end},     {"edge", edge},    {"room", room},
                                      {"many", many}, {"edges", edges}, {"let in", let_in}};

int main(int count, char **words) {
  MUST(count == 2);
  pair_make(&client, &server);
  return run_named(scenes, sizeof scenes / sizeof *scenes, words[1]);
}
