/* `books NAME`: calls on descriptors that fail, and what becomes of the connection then. */
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

#include "named.h"
#include "pair.h"

static int listener, client, server;
static struct sockaddr_in at;

static void still_there(void) {
  exchanges(client, server, 2);
  printf("still there\n");
}

static void dup_fails(void) {
  say("bad flags", dup3(listener, client, O_APPEND));
  say("bad descriptor", dup2(-1, client));
  say("bad descriptor", dup3(1000, client, 0));
  struct rlimit few, limit;
  MUST(getrlimit(RLIMIT_NOFILE, &limit) == 0);
  few = limit;
  few.rlim_cur = (rlim_t)client;
  MUST(setrlimit(RLIMIT_NOFILE, &few) == 0);
  say("beyond the limit", dup2(listener, client));
  MUST(setrlimit(RLIMIT_NOFILE, &limit) == 0);
  still_there();
}

/* What execve() says of arguments that are too many; the descriptors would have been closed by it. */
static void exec_fails(void) {
  static char big[100000];
  static char *words[200], *no_shim[1];
  memset(big, 'a', sizeof big - 1);
  for (int i = 0; i < 199; i++) {
    words[i] = big;
  }
  MUST(fcntl(client, F_SETFD, FD_CLOEXEC) == 0 && fcntl(server, F_SETFD, FD_CLOEXEC) == 0);
  say("exec", execve("/bin/true", words, no_shim));
  still_there();
}

static void *close_it(void *p) {
  pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
  pthread_cancel(pthread_self());
  close(*(int *)p);
  pthread_testcancel();
  return NULL;
}

/* A fork waits until nobody is in the middle of a close: a thread that was cancelled there would be waited for. */
static void cancelled_close(void) {
  pthread_t thread;
  int copy = dup(client);
  MUST(pthread_create(&thread, NULL, close_it, &copy) == 0);
  pthread_join(thread, NULL);
  double begin = seconds();
  pid_t child = fork();
  if (child == 0) {
    _exit(0);
  }
  MUST(child > 0 && waitpid(child, NULL, 0) == child);
  printf("forks at once: %d\n", seconds() - begin < 2);
  still_there();
}

static void readable(void) {
  int n = 0, on = 1;
  char bytes[32];
  struct epoll_event event = {.events = EPOLLIN};
  int inner = epoll_create1(0),
      outer = epoll_create1(0); /* a set in a set is the kernel's: it is told by a byte there */
  MUST(epoll_ctl(inner, EPOLL_CTL_ADD, server, &event) == 0);
  MUST(epoll_ctl(outer, EPOLL_CTL_ADD, inner, &event) == 0);
  MUST(write(client, "abc", 3) == 3);
  MUST(epoll_wait(outer, &event, 1, 5000) == 1);
  MUST(setsockopt(client, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on) == 0); /* the ring ends here */
  MUST(write(client, "defg", 4) == 4);
  do {
    MUST(ioctl(server, FIONREAD, &n) == 0);
  } while (n < 4);
  printf("readable: %d\n", n);
  MUST(recv(server, bytes, 3, 0) == 3);
  MUST(ioctl(server, FIONREAD, &n) == 0);
  printf("readable: %d\n", n);
  MUST(recv(server, bytes, sizeof bytes, 0) == 4);
  MUST(ioctl(server, FIONREAD, &n) == 0);
  printf("readable: %d\n", n);
}

static const struct named all[] = {{"dup_fails", dup_fails},
                                   {"exec_fails", exec_fails},
                                   {"cancelled_close", cancelled_close},
                                   {"readable", readable}};

int main(int count, char **words) {
  MUST(count == 2);
  listener = pair_listener(&at);
  pair_of(listener, &at, &client, &server);
  return run_named(all, sizeof all / sizeof *all, words[1]);
}
