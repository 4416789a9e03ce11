/* Many connections of every sort at once; each byte that comes back is checked.
 *
 *   stress server PORT [nofork]               echoes (each byte changed), in threads, from a shared epoll set, in forks
 *   stress client PORT SEED THREADS COUNT     COUNT connections from each thread; "ok", or what was wrong
 *
 * What goes over a connection is a function of its seed and the position, so both sides of a mismatch are known. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHUNK = 65536, CHANGE = 0x5a, SERVER_THREADS = 3, MODES = 6 };

static uint64_t next(uint64_t *s) {
  *s ^= *s >> 12;
  *s ^= *s << 25;
  *s ^= *s >> 27;
  return *s * 2685821657736338717u;
}

static uint8_t byte_at(uint64_t seed, uint64_t at) {
  uint64_t x = (seed + at) * 0x9e3779b97f4a7c15u;
  return (uint8_t)(x >> 56 ^ x >> 24);
}

static void check(bool good, const char *what, uint64_t seed) {
  if (!good) {
    printf("wrong: %s (seed %llu, errno %d: %s)\n", what, (unsigned long long)seed, errno, strerror(errno));
    fflush(stdout);
    _exit(1);
  }
}

static void non_blocking(int fd) {
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

/* ---- server ------------------------------------------------------------------------------------- */

static void change(uint8_t *data, size_t n) {
  for (size_t i = 0; i < n; i++) {
    data[i] ^= CHANGE;
  }
}

/* 0 when all is said, -1 when the client has gone. */
static int echo(int fd, uint64_t seed) {
  uint8_t data[CHUNK];
  int result = -1;
  for (;;) {
    size_t want = next(&seed) % CHUNK + 1;
    if (next(&seed) % 8 == 0 && recv(fd, data, want, MSG_PEEK) < 0) {
      break;
    }
    ssize_t n = recv(fd, data, want, 0);
    if (n <= 0) {
      result = n == 0 ? 0 : -1;
      break;
    }
    change(data, (size_t)n);
    ssize_t done = 0;
    while (done < n) {
      ssize_t k = send(fd, data + done, (size_t)(n - done), 0);
      if (k <= 0) {
        break;
      }
      done += k;
    }
    if (done < n) {
      break;
    }
  }
  return result;
}

static void *serve_one(void *p) {
  int fd = (int)(intptr_t)p;
  echo(fd, (uint64_t)fd * 7919 + 1);
  close(fd);
  return NULL;
}

/* One that several threads wait for: EPOLLONESHOT, and what could not be sent yet is kept. */
struct member {
  int fd;
  size_t kept;
  uint8_t data[CHUNK];
};
static int set;

static bool turn(struct member *m) {
  for (;;) {
    while (m->kept > 0) {
      ssize_t k = send(m->fd, m->data, m->kept, 0);
      if (k < 0) {
        return errno == EAGAIN;
      }
      m->kept -= (size_t)k;
      memmove(m->data, m->data + k, m->kept);
    }
    ssize_t n = recv(m->fd, m->data, sizeof m->data, 0);
    if (n < 0) {
      return errno == EAGAIN;
    }
    if (n == 0) {
      return false;
    }
    change(m->data, (size_t)n);
    m->kept = (size_t)n;
  }
}

static void *serve_set(void *p) {
  (void)p;
  for (;;) {
    struct epoll_event e[2];
    int n = epoll_wait(set, e, 2, -1);
    for (int i = 0; i < n; i++) {
      struct member *m = e[i].data.ptr;
      if (turn(m)) {
        struct epoll_event again = {.events = (m->kept > 0 ? EPOLLOUT : EPOLLIN) | EPOLLONESHOT,
                                    .data.ptr = m};
        epoll_ctl(set, EPOLL_CTL_MOD, m->fd, &again);
      } else {
        close(m->fd);
        free(m);
      }
    }
  }
  return NULL;
}

/* Forks are left out under the address sanitizer, whose allocator does not survive one in a process with threads. */
static int server(int port, bool forks) {
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int on = 1;
  struct sockaddr_in a = {
      .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(listener, (struct sockaddr *)&a, sizeof a) != 0 || listen(listener, 512) != 0) {
    perror("listen");
    return 1;
  }
  signal(SIGCHLD, SIG_IGN);
  set = epoll_create1(EPOLL_CLOEXEC);
  pthread_t thread;
  for (int i = 0; i < SERVER_THREADS; i++) {
    pthread_create(&thread, NULL, serve_set, NULL);
  }
  for (unsigned count = 0;; count++) {
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) {
      perror("accept");
      return 1;
    }
    if (forks && count % 8 == 7) {
      int go[2];
      pid_t child = pipe(go) == 0 ? fork() : -1;
      if (child == 0) {
        char nothing;
        close(go[1]);
        if (read(go[0], &nothing, 1) == 0) { /* a connection of two processes stays where it is */
          echo(fd, count);
        }
        _exit(0);
      }
      close(fd);
      close(go[0]);
      close(go[1]);
    } else if (count % 2 == 0) {
      pthread_attr_t attributes;
      pthread_attr_init(&attributes);
      pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
      pthread_create(&thread, &attributes, serve_one, (void *)(intptr_t)fd);
      pthread_attr_destroy(&attributes);
    } else {
      non_blocking(fd);
      struct member *m = malloc(sizeof *m);
      m->fd = fd;
      m->kept = 0;
      struct epoll_event e = {.events = EPOLLIN | EPOLLONESHOT, .data.ptr = m};
      epoll_ctl(set, EPOLL_CTL_ADD, fd, &e);
    }
  }
}

/* ---- client ------------------------------------------------------------------------------------- */

struct talk {
  int fd;
  uint64_t seed;
  uint64_t total;
  uint64_t sent;
  uint64_t had;
  uint64_t random;
  uint8_t *data;
};

static size_t size_of_a_piece(uint64_t *random) {
  uint64_t kind = next(random) % 10;
  return next(random) % (kind < 5 ? 64 : kind < 8 ? 4096 : CHUNK) + 1;
}

/* One try each; false: not now. */
static bool send_some(struct talk *t) {
  size_t n = size_of_a_piece(&t->random);
  n = n < t->total - t->sent ? n : (size_t)(t->total - t->sent);
  for (size_t i = 0; i < n; i++) {
    t->data[i] = byte_at(t->seed, t->sent + i);
  }
  ssize_t k = send(t->fd, t->data, n, MSG_NOSIGNAL);
  check(k > 0 || (k < 0 && errno == EAGAIN), "send", t->seed);
  t->sent += k > 0 ? (uint64_t)k : 0;
  if (t->sent == t->total) {
    check(shutdown(t->fd, SHUT_WR) == 0, "shutdown", t->seed);
  }
  return k > 0;
}

static bool receive_some(struct talk *t) {
  uint8_t space[4096];
  size_t n = next(&t->random) % sizeof space + 1;
  ssize_t k = recv(t->fd, space, n, 0);
  check(k >= 0 || errno == EAGAIN, "recv", t->seed);
  if (k == 0) {
    check(t->had == t->total, "the end came too early", t->seed);
    t->had = UINT64_MAX;
    return false;
  }
  for (ssize_t i = 0; i < k; i++) {
    check((space[i] ^ CHANGE) == byte_at(t->seed, t->had + (uint64_t)i), "another byte came back", t->seed);
  }
  t->had += k > 0 ? (uint64_t)k : 0;
  return k > 0;
}

/* Back and forth, blocking. */
static void by_turns(struct talk *t) {
  while (t->sent < t->total) {
    uint64_t upto = t->sent;
    send_some(t);
    upto = t->sent > upto ? t->sent : upto;
    while (t->had < upto) {
      receive_some(t);
    }
  }
  receive_some(t);
  check(t->had == UINT64_MAX, "more came than was sent", t->seed);
}

static short wanted(const struct talk *t) {
  return POLLIN | (t->sent < t->total ? POLLOUT : 0);
}

static void by_poll(struct talk *t) {
  non_blocking(t->fd);
  while (t->had != UINT64_MAX) {
    struct pollfd p = {.fd = t->fd, .events = wanted(t)};
    check(poll(&p, 1, 20000) == 1, "poll: nothing for 20 s", t->seed);
    if (p.revents & POLLOUT) {
      send_some(t);
    }
    if (p.revents & (POLLIN | POLLHUP)) {
      receive_some(t);
    }
  }
}

static void by_select(struct talk *t) {
  non_blocking(t->fd);
  while (t->had != UINT64_MAX) {
    fd_set in, out;
    struct timeval patience = {20, 0};
    FD_ZERO(&in);
    FD_ZERO(&out);
    FD_SET(t->fd, &in);
    if (wanted(t) & POLLOUT) {
      FD_SET(t->fd, &out);
    }
    check(select(t->fd + 1, &in, &out, NULL, &patience) >= 1, "select: nothing for 20 s", t->seed);
    if (FD_ISSET(t->fd, &out)) {
      send_some(t);
    }
    if (FD_ISSET(t->fd, &in)) {
      receive_some(t);
    }
  }
}

static void by_epoll(struct talk *t, bool edge) {
  non_blocking(t->fd);
  int e = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | (edge ? EPOLLET : 0), .data.u64 = t->seed};
  check(epoll_ctl(e, EPOLL_CTL_ADD, t->fd, &event) == 0, "epoll_ctl", t->seed);
  bool out = true;
  while (t->had != UINT64_MAX) {
    check(epoll_wait(e, &event, 1, 20000) == 1,
          edge ? "epoll, edges: nothing for 20 s" : "epoll: nothing for 20 s", t->seed);
    check(event.data.u64 == t->seed, "epoll: somebody else's data", t->seed);
    if (event.events & EPOLLOUT) {
      while (t->sent < t->total && send_some(t) && edge) {
      }
    }
    if (event.events & (EPOLLIN | EPOLLHUP)) {
      while (t->had != UINT64_MAX && receive_some(t) && edge) {
      }
    }
    if (!edge && out && t->sent == t->total) {
      out = false;
      event.events = EPOLLIN;
      check(epoll_ctl(e, EPOLL_CTL_MOD, t->fd, &event) == 0, "epoll_ctl", t->seed);
    }
  }
  close(e);
}

static void *send_all(void *p) {
  struct talk *t = p;
  while (t->sent < t->total) {
    send_some(t);
  }
  return NULL;
}

static void by_two_threads(struct talk *t) {
  pthread_t writer;
  struct talk in = *t;
  in.random ^= 0x5555;
  check(pthread_create(&writer, NULL, send_all, t) == 0, "pthread_create", t->seed);
  while (in.had != UINT64_MAX) {
    receive_some(&in);
  }
  pthread_join(writer, NULL);
}

static int port;
static int connections;

static void one_connection(uint64_t seed, uint8_t *data) {
  struct talk t = {.seed = seed, .random = seed * 2 + 1, .data = data};
  struct sockaddr_in a = {
      .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  t.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  check(t.fd >= 0 && connect(t.fd, (struct sockaddr *)&a, sizeof a) == 0, "connect", seed);
  t.total = 1 + (next(&t.random) % 6 == 0 ? next(&t.random) % 500000 : next(&t.random) % 20000);
  switch (next(&t.random) % MODES) {
  case 0:
    by_turns(&t);
    break;
  case 1:
    by_poll(&t);
    break;
  case 2:
    by_select(&t);
    break;
  case 3:
    by_epoll(&t, false);
    break;
  case 4:
    by_epoll(&t, true);
    break;
  default:
    by_two_threads(&t);
  }
  close(t.fd);
}

static void *client_thread(void *p) {
  uint64_t seed = *(uint64_t *)p;
  uint8_t *data = malloc(CHUNK);
  for (int i = 0; i < connections; i++) {
    one_connection(next(&seed), data);
  }
  free(data);
  return NULL;
}

static int client(uint64_t seed, int threads) {
  pthread_t thread[64];
  uint64_t seeds[64];
  uint8_t *data = malloc(CHUNK);
  one_connection(seed * 3 + 1, data);
  free(data);
  puts("begun");
  fflush(stdout);
  for (int i = 0; i < threads; i++) {
    seeds[i] = seed * 1000 + (uint64_t)i + 1;
    pthread_create(&thread[i], NULL, client_thread, &seeds[i]);
  }
  for (int i = 0; i < threads; i++) {
    pthread_join(thread[i], NULL);
  }
  puts("ok");
  return 0;
}

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);
  if (argc >= 3 && strcmp(argv[1], "server") == 0) {
    return server(atoi(argv[2]), argc == 3);
  }
  if (argc == 6 && strcmp(argv[1], "client") == 0 && atoi(argv[4]) <= 64) {
    port = atoi(argv[2]);
    connections = atoi(argv[5]);
    return client(strtoull(argv[3], NULL, 10), atoi(argv[4]));
  }
  fprintf(stderr, "usage: stress server PORT | stress client PORT SEED THREADS COUNT\n");
  return 2;
}
