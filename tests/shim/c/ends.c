/* `ends NAME`: what the calls on a connection say when it ends, or when a wait is cut short. */
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "named.h"
#include "one_event.h"
#include "pair.h"

static int listener, client, server;
static struct sockaddr_in at;
static char bytes[64];

static void *reset_later(void *p) {
  moment(100);
  reset_by(*(int *)p);
  return NULL;
}

static void two_then_reset(int low_water) {
  pthread_t thread;
  MUST(setsockopt(client, SOL_SOCKET, SO_RCVLOWAT, &low_water, sizeof low_water) == 0);
  MUST(write(server, "ab", 2) == 2);
  MUST(pthread_create(&thread, NULL, reset_later, &server) == 0);
  say("a part", recv(client, bytes, 5, low_water > 1 ? 0 : MSG_WAITALL));
  pthread_join(thread, NULL);
  say("its reason", recv(client, bytes, 5, 0));
  say("told once", recv(client, bytes, 5, 0));
}

static void waitall_reset(void) {
  two_then_reset(1);
}

static void low_water_reset(void) {
  two_then_reset(5);
}

static void send_reset(void) {
  static char much[32 << 20];
  pthread_t thread;
  MUST(pthread_create(&thread, NULL, reset_later, &server) == 0);
  ssize_t n = send(client, much, sizeof much, MSG_NOSIGNAL);
  printf("a part: %d\n", n > 0 && n < (ssize_t)sizeof much);
  pthread_join(thread, NULL);
  say("its reason", send(client, "x", 1, MSG_NOSIGNAL));
  say("told once", send(client, "x", 1, MSG_NOSIGNAL));
}

/* A second wait of the same length would show; how long the first one took would not. */
static void waitall_timeout(void) {
  struct timeval t = {.tv_sec = 1};
  MUST(setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t) == 0);
  MUST(write(server, "ab", 2) == 2);
  double begin = seconds();
  say("a part", recv(client, bytes, 5, MSG_WAITALL));
  printf("one wait: %d\n", seconds() - begin < 1.9);
}

static void on_signal(int number) {
  (void)number;
}

static pthread_t reader;
static _Atomic int about_to, done;

static bool asleep(void) {
  char text[64] = "", state = 0;
  FILE *f = fopen("/proc/self/stat", "r"); /* of the first thread */
  MUST(f != NULL && fscanf(f, "%*d %63s %c", text, &state) == 2);
  fclose(f);
  return state == 'S';
}

/* One signal, when it waits.  Who waits again after it does so until the bytes come after all. */
static void *interrupt(void *p) {
  (void)p;
  for (int seen = 0; seen < 3;) {
    moment(5);
    seen = about_to && asleep() ? seen + 1 : 0;
  }
  pthread_kill(reader, SIGUSR1);
  for (int i = 0; i < 100 && !done; i++) {
    moment(10);
  }
  if (!done) {
    MUST(write(server, "cde", 3) == 3);
  }
  return NULL;
}

static void waitall_signal(void) {
  struct sigaction action = {.sa_handler = on_signal};
  pthread_t thread;
  MUST(sigaction(SIGUSR1, &action, NULL) == 0);
  MUST(write(server, "ab", 2) == 2);
  reader = pthread_self();
  MUST(pthread_create(&thread, NULL, interrupt, NULL) == 0);
  about_to = 1;
  say("a part", recv(client, bytes, 5, MSG_WAITALL));
  done = 1;
  pthread_join(thread, NULL);
}

static void no_wait(void) {
  struct timeval t = {.tv_sec = -1};
  MUST(setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t) == 0);
  say("a negative timeout", recv(client, bytes, 5, 0));
}

static void inherited_linger(void) {
  struct linger now = {.l_onoff = 1};
  close(client);
  close(server);
  MUST(setsockopt(listener, SOL_SOCKET, SO_LINGER, &now, sizeof now) == 0);
  pair_of(listener, &at, &client, &server);
  MUST(write(server, "ab", 2) == 2);
  MUST(close(server) == 0);
  say("what was sent", recv(client, bytes, 8, 0));
  say("then", recv(client, bytes, 8, 0));
}

static void killed(void) {
  close(client);
  close(server);
  pid_t child = fork();
  MUST(child >= 0);
  if (child == 0) {
    server = socket(AF_INET, SOCK_STREAM, 0);
    MUST(connect(server, (struct sockaddr *)&at, sizeof at) == 0);
    for (int i = 0; i < 3; i++) {
      MUST(recv(server, bytes, 3, MSG_WAITALL) == 3 && write(server, "say", 3) == 3);
    }
    pause();
  }
  client = accept(listener, NULL, NULL);
  for (int i = 0; i < 3; i++) {
    MUST(write(client, "ask", 3) == 3 && recv(client, bytes, 3, MSG_WAITALL) == 3);
  }
  MUST(write(client, "unread request", 14) == 14);
  MUST(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
  struct pollfd p = {.fd = client, .events = POLLRDHUP};
  MUST(poll(&p, 1, 5000) == 1);
  say("recv", recv(client, bytes, 8, 0));
  say("recv", recv(client, bytes, 8, 0));
  say("send", send(client, "x", 1, MSG_NOSIGNAL));
}

/* Its other end has ended and lives: what it has not read yet it still gets. */
static void half_closed(void) {
  MUST(write(client, "unread request", 14) == 14);
  MUST(shutdown(server, SHUT_WR) == 0);
  say("recv", recv(client, bytes, 8, 0));
  say("send", send(client, "x", 1, MSG_NOSIGNAL));
  say("there", recv(server, bytes, sizeof bytes, 0));
}

static void *wait_for_end(void *p) {
  say("recv", recv(client, bytes, 8, 0));
  struct pollfd q = {.fd = client, .events = POLLIN | POLLRDHUP};
  MUST(poll(&q, 1, 0) == 1);
  *(short *)p = q.revents;
  return NULL;
}

static void own_shutdown(void) {
  pthread_t thread;
  short events = 0;
  MUST(pthread_create(&thread, NULL, wait_for_end, &events) == 0);
  moment(100);
  MUST(shutdown(client, SHUT_RD) == 0);
  pthread_join(thread, NULL);
  printf("error: %d end: %d\n", (events & POLLERR) != 0, (events & POLLRDHUP) != 0);
}

/* The other end's reading is over: it is sent to all the same (SIGPIPE would end this program). */
static void reader_shut(void) {
  MUST(shutdown(server, SHUT_RD) == 0);
  say("send", write(client, "x", 1));
  struct pollfd p = {.fd = client, .events = POLLIN | POLLOUT};
  MUST(poll(&p, 1, 0) == 1);
  printf("writable: %d readable: %d\n", (p.revents & POLLOUT) != 0, (p.revents & (POLLIN | POLLHUP)) != 0);
  MUST(write(server, "ok", 2) == 2);
  say("the other way", recv(client, bytes, 8, 0));
  MUST(shutdown(server, SHUT_WR) == 0);
  say("its end", recv(client, bytes, 8, 0));
}

static void thrown_away(void) {
  MUST(write(client, "abcdefgh", 8) == 8);
  strcpy(bytes, "....");
  say("thrown away", recv(server, bytes, 3, MSG_TRUNC));
  say("to nowhere", recv(server, NULL, 2, MSG_TRUNC));
  say("counted", recv(server, NULL, 8, MSG_PEEK | MSG_TRUNC));
  printf("%s\n", bytes);
  say("left", recv(server, bytes, 8, 0));
  printf("%.3s\n", bytes);
}

static void thrown_away_by_message(void) {
  struct iovec parts[2] = {{bytes, 2}, {bytes + 2, 2}};
  struct mmsghdr m[2] = {{.msg_hdr = {.msg_iov = parts, .msg_iovlen = 2}},
                         {.msg_hdr = {.msg_iov = parts, .msg_iovlen = 1}}};
  MUST(write(client, "abcdefghij", 10) == 10);
  strcpy(bytes, "....");
  say("looked at", recvmsg(server, &m[0].msg_hdr, MSG_PEEK | MSG_TRUNC));
  say("thrown away", recvmsg(server, &m[0].msg_hdr, MSG_TRUNC));
  say("messages", recvmmsg(server, m, 2, MSG_TRUNC | MSG_DONTWAIT, NULL));
  printf("%u and %u: %s\n", m[0].msg_len, m[1].msg_len, bytes);
  say("none", recvmmsg(server, m, 2, MSG_TRUNC | MSG_DONTWAIT, NULL));
}

static void error_queue(void) {
  struct iovec part = {bytes, 8};
  char space[100];
  struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
  MUST(write(client, "data", 4) == 4);
  say("errors", recv(server, bytes, 8, MSG_ERRQUEUE));
  say("errors", recvmsg(server, &m, MSG_ERRQUEUE));
  say("data", recv(server, bytes, 8, 0));
}

static void dissolved(void) {
  struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
  say("dissolved", connect(client, &nowhere, sizeof nowhere));
  say("the other end", recv(server, bytes, 8, 0));
  close(server);
  MUST(connect(client, (struct sockaddr *)&at, sizeof at) == 0);
  server = accept(listener, NULL, NULL);
  exchanges(client, server, 2);
  printf("again\n");
}

static void dissolved_for_a_child(void) {
  pid_t child = fork();
  MUST(child >= 0);
  if (child == 0) {
    pause();
  }
  dissolved();
  MUST(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
}

/* Before the other end is accepted: what it sends then is answered with a reset, and never read. */
static void shut_early(int first, int second) {
  int to, from = socket(AF_INET, SOCK_STREAM, 0);
  MUST(connect(from, (struct sockaddr *)&at, sizeof at) == 0 && write(from, "ask", 3) == 3);
  MUST(shutdown(from, first) == 0 && shutdown(from, second) == 0);
  MUST((to = accept(listener, NULL, NULL)) >= 0);
  say("asked", recv(to, bytes, 8, 0));
  say("answered", write(to, "answer", 6));
  moment(50);
  say("the answer", recv(from, bytes, 8, MSG_DONTWAIT));
  say("the other end", recv(to, bytes, 8, MSG_DONTWAIT));
  close(from);
  close(to);
}

static void shut_at_once(void) {
  shut_early(SHUT_RDWR, SHUT_RDWR);
}

static void shut_half_by_half(void) {
  shut_early(SHUT_RD, SHUT_WR);
}

/* Of a reset, a send of nothing tells as any other. */
static void nothing_sent_to_the_reset(void) {
  int set = epoll_create1(EPOLL_CLOEXEC);
  MUST(write(client, "unread", 6) == 6 && write(server, "read", 4) == 4);
  close(server);
  moment(20);
  MUST(add(set, client, EPOLLIN) == 0);
  MUST((told(set, client, 1000) & EPOLLERR) && (told(set, client, 1000) & EPOLLERR));
  say("nothing", send(client, "", 0, MSG_NOSIGNAL));
  say("told once", send(client, "", 0, MSG_NOSIGNAL));
}

static void forked_by_number(void) {
#ifdef SYS_fork
  pid_t child = (pid_t)syscall(SYS_fork);
#else
  pid_t child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
#endif
  MUST(child >= 0);
  if (child == 0) {
    close(client);
    close(server);
    _exit(0);
  }
  MUST(waitpid(child, NULL, 0) == child);
  exchanges(client, server, 2);
  printf("still there\n");
}

static void refused(void) {
  struct iovec part = {bytes, 1};
  struct mmsghdr one = {.msg_hdr = {.msg_iov = &part, .msg_iovlen = 1}};
  struct timespec bad[] = {{-1, 0}, {0, -1}, {0, 1000000000}};
  MUST(write(client, "x", 1) == 1);
  for (int i = 0; i < 3; i++) {
    say("a bad timeout", recvmmsg(server, &one, 1, 0, &bad[i]));
  }
  say("unknown flags", preadv2(server, &part, 1, -1, 1 << 30));
  say("unknown flags", pwritev2(client, &part, 1, -1, 1 << 30));
  say("there", recv(server, bytes, 8, 0));
}

static const struct named all[] = {
    {"waitall_reset", waitall_reset},
    {"low_water_reset", low_water_reset},
    {"send_reset", send_reset},
    {"waitall_timeout", waitall_timeout},
    {"waitall_signal", waitall_signal},
    {"no_wait", no_wait},
    {"inherited_linger", inherited_linger},
    {"killed", killed},
    {"half_closed", half_closed},
    {"own_shutdown", own_shutdown},
    {"reader_shut", reader_shut},
    {"thrown_away", thrown_away},
    {"thrown_away_by_message", thrown_away_by_message},
    {"error_queue", error_queue},
    {"dissolved", dissolved},
    {"dissolved_for_a_child", dissolved_for_a_child},
    {"shut_at_once", shut_at_once},
    {"shut_half_by_half", shut_half_by_half},
    {"nothing_sent_to_the_reset", nothing_sent_to_the_reset},
    {"forked_by_number", forked_by_number},
    {"refused", refused},
};

int main(int count, char **words) {
  MUST(count == 2);
  listener = pair_listener(&at);
  pair_of(listener, &at, &client, &server);
  exchanges(client, server, 60); /* a connection that stays */
  return run_named(all, sizeof all / sizeof *all, words[1]);
}
