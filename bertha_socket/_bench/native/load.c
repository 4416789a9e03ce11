/* Closed-loop load from one thread by epoll: load TARGET --clients C --milliseconds M --request TEXT
 *                                                --reply BYTES [--first TEXT --first-reply BYTES] [--out FILE]
 *
 * Each of C connections sends TEXT (\r and \n written as in C), waits until BYTES have come back, and sends
 * the next.  --first is sent once before, on the first connection.  FILE receives the latencies, integers of
 * 64 bits in nanoseconds (the first million of them).
 *
 * Prints one JSON object: requests, spurious (how often a descriptor was said to be readable and was not: a
 * program like wrk takes that for an error), wall_ns, cpu_ns (this process).
 */
#include "common.h"

#include <fcntl.h>
#include <sys/epoll.h>

#define LATENCIES_MAX 1000000u

struct client {
  int fd;
  size_t missing; /* bytes of the answer that have not come yet */
  uint64_t sent_at;
};

static char *unescape(const char *text, size_t *len) {
  char *out = malloc(strlen(text) + 1);
  size_t n = 0;
  if (out == NULL) {
    fail("malloc");
  }
  for (; *text; text++) {
    if (text[0] == '\\' && (text[1] == 'r' || text[1] == 'n')) {
      out[n++] = *++text == 'r' ? '\r' : '\n';
    } else {
      out[n++] = *text;
    }
  }
  out[n] = 0;
  *len = n;
  return out;
}

int main(int argc, char **argv) {
  static char buf[65536];
  struct epoll_event events[64];
  if (argc < 2) {
    fprintf(stderr,
            "usage: load TARGET --clients C --milliseconds M --request TEXT --reply BYTES [--out FILE]\n");
    return 2;
  }
  struct target t = parse_target(argv[1]);
  size_t count = number(argc, argv, "--clients", "50");
  size_t reply = number(argc, argv, "--reply", "1");
  uint64_t duration = (uint64_t)number(argc, argv, "--milliseconds", "1000") * 1000000u;
  size_t request_len, first_len;
  char *request = unescape(option(argc, argv, "--request", "x"), &request_len);
  char *first = unescape(option(argc, argv, "--first", ""), &first_len);
  size_t first_reply = number(argc, argv, "--first-reply", "0");
  const char *out = option(argc, argv, "--out", NULL);
  struct client *clients = calloc(count, sizeof *clients);
  uint64_t *latencies = calloc(LATENCIES_MAX, sizeof *latencies);
  int ep = epoll_create1(EPOLL_CLOEXEC);
  if (clients == NULL || latencies == NULL || ep < 0) {
    fail("load");
  }

  for (size_t i = 0; i < count; i++) {
    clients[i].fd = open_to(&t, 1);
    if (i == 0 && first_len > 0) {
      send_all(clients[i].fd, first, first_len);
      recv_all(clients[i].fd, buf, first_reply);
    }
    fcntl(clients[i].fd, F_SETFL, O_NONBLOCK);
    struct epoll_event want = {.events = EPOLLIN, .data.ptr = &clients[i]};
    if (epoll_ctl(ep, EPOLL_CTL_ADD, clients[i].fd, &want) != 0) {
      fail("epoll_ctl");
    }
  }

  uint64_t begin = now_ns();
  uint64_t begin_cpu = cpu_ns();
  uint64_t now = begin;
  size_t done = 0, spurious = 0;
  for (size_t i = 0; i < count; i++) {
    clients[i].missing = reply;
    clients[i].sent_at = now_ns();
    send_all(clients[i].fd, request, request_len);
  }
  while ((now = now_ns()) - begin < duration) {
    int n = epoll_wait(ep, events, 64, 1000);
    for (int i = 0; i < n; i++) {
      struct client *c = events[i].data.ptr;
      ssize_t got = recv(c->fd, buf, sizeof buf < c->missing ? sizeof buf : c->missing, 0);
      if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
        spurious += errno == EAGAIN;
        continue;
      }
      if (got <= 0) {
        fprintf(stderr, "recv: the server closed a connection\n");
        return 1;
      }
      c->missing -= (size_t)got;
      if (c->missing == 0) {
        now = now_ns();
        if (done < LATENCIES_MAX) {
          latencies[done] = now - c->sent_at;
        }
        done++;
        c->missing = reply;
        c->sent_at = now;
        send_all(c->fd, request, request_len);
      }
    }
  }
  uint64_t wall = now - begin;
  uint64_t cpu = cpu_ns() - begin_cpu;
  for (size_t i = 0; i < count; i++) {
    close(clients[i].fd);
  }
  if (out != NULL) {
    size_t n = done < LATENCIES_MAX ? done : LATENCIES_MAX;
    FILE *f = fopen(out, "wb");
    if (f == NULL || fwrite(latencies, sizeof *latencies, n, f) != n || fclose(f) != 0) {
      fail(out);
    }
  }
  printf("{\"requests\": %zu, \"spurious\": %zu, \"wall_ns\": %llu, \"cpu_ns\": %llu}\n", done, spurious,
         (unsigned long long)wall, (unsigned long long)cpu);
  return 0;
}
