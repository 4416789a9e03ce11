/* PORT WAY: descriptors of connections that the C library, or the program by instructions of its own, closes or
 * replaces by names that no library can take over.  What the client is to hear is in test_past_us.py. */
#include "common.h"

#include <fcntl.h>
#include <pty.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <utmp.h>

static int listening;

static int next_client(void) {
  char byte;
  int fd = accept(listening, NULL, NULL);
  MUST(fd >= 0 && write(fd, "*", 1) == 1 && read(fd, &byte, 1) == 1);
  return fd;
}

static void say(int fd, const char *text) {
  MUST(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
}

/* No library sees this. */
static void close_unseen(int fd) {
  long result;
#if defined(__x86_64__)
  __asm__ __volatile__("syscall"
                       : "=a"(result)
                       : "a"((long)SYS_close), "D"((long)fd)
                       : "rcx", "r11", "memory");
#else
  register long number __asm__("x8") = SYS_close;
  register long argument __asm__("x0") = fd;
  __asm__ __volatile__("svc #0" : "+r"(argument) : "r"(number) : "memory");
  result = argument;
#endif
  MUST(result == 0);
}

static void way_daemon(void) {
  int fd = next_client();
  MUST(dup2(fd, 0) == 0 && dup2(fd, 1) == 1);
  MUST(daemon(1, 0) == 0);
  say(1, "lost");
  MUST(read(0, &(char){0}, 1) == 0); /* /dev/null's */
  say(fd, "kept");
  close(fd);
}

static void way_terminal(void) {
  int fd = next_client();
  int terminal, status;
  char text[8];
  int before[2] = {dup(0), dup(1)};
  MUST(dup2(fd, 0) == 0 && dup2(fd, 1) == 1);
  pid_t child = forkpty(&terminal, NULL, NULL, NULL);
  MUST(child >= 0);
  if (child == 0) {
    say(1, "tty");
    _exit(isatty(0) && isatty(1) && isatty(2) && close(fd) == 0 ? 0 : 1);
  }
  MUST(read(terminal, text, sizeof text) == 3 && memcmp(text, "tty", 3) == 0);
  MUST(waitpid(child, &status, 0) == child && status == 0);
  MUST(dup2(before[0], 0) == 0 && dup2(before[1], 1) == 1);
  say(fd, "kept");
  close(fd);
}

static void way_stream(void) {
  for (int i = 0; i < 20; i++) {
    int fd = next_client();
    FILE *f = fdopen(fd, "r+");
    MUST(f != NULL && fileno(f) == fd && fprintf(f, "line %d", i) > 0);
    MUST(fclose(f) == 0 && write(fd, "x", 1) == -1 && errno == EBADF);
  }
}

static void way_reopened(void) {
  int fd = next_client();
  FILE *f = fdopen(fd, "w");
  MUST(f != NULL && fprintf(f, "kept") == 4);
  MUST(freopen("/dev/null", "w", f) == f && fileno(f) == fd && fprintf(f, "lost") == 4 && fclose(f) == 0);
  fd = next_client();
  int before = dup(1);
  MUST(dup2(fd, 1) == 1 && close(fd) == 0 && printf("kept") == 4);
  FILE *out = freopen("/dev/null", "w", stdout);
  MUST(out != NULL && out == stdout && fileno(out) == 1 && printf("lost") == 4 && fflush(stdout) == 0);
  MUST(dup2(before, 1) == 1);
  fd = next_client();
  MUST((f = fdopen(fd, "w")) != NULL && fprintf(f, "kept") == 4);
  MUST(freopen(NULL, "r", f) == NULL); /* no socket can be opened again */
  fd = next_client();                  /* its stream was there before it */
  MUST((f = fopen("/dev/null", "w")) != NULL && dup2(fd, fileno(f)) == fileno(f) && close(fd) == 0);
  MUST(fclose(f) == 0);
}

static int by_stream(FILE *f) {
  return f != NULL ? fileno(f) : -1;
}

/* Each makes a descriptor, which gets the number that has been closed unseen. */
static int make(int which) {
  int pair[2];
  sigset_t none;
  sigemptyset(&none);
  switch (which) {
  case 0:
    return open("/dev/null", O_RDWR);
  case 1:
    return open64("/dev/null", O_RDWR);
  case 2:
    return openat(AT_FDCWD, "/dev/null", O_RDWR);
  case 3:
    return openat64(AT_FDCWD, "/dev/null", O_RDWR);
  case 4:
    return creat("/dev/null", 0600);
  case 5:
    return creat64("/dev/null", 0600);
  case 6:
    return by_stream(fopen("/dev/null", "r+"));
  case 7:
    return by_stream(fopen64("/dev/null", "r+"));
  case 8:
    return eventfd(0, EFD_NONBLOCK);
  case 9:
    return signalfd(-1, &none, SFD_NONBLOCK);
  case 10:
    return timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  case 11:
    return memfd_create("x", 0);
  case 12:
    return inotify_init();
  case 13:
    return inotify_init1(IN_NONBLOCK);
  case 14:
    return epoll_create(1);
  case 15:
    return epoll_create1(0);
  case 16:
    return socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0 ? pair[0] : -1;
  case 17:
    return pipe(pair) == 0 ? pair[0] : -1;
  case 18:
    return pipe2(pair, O_NONBLOCK) == 0 ? pair[0] : -1;
  case 19:
    return socket(AF_INET, SOCK_DGRAM, 0);
  case 20:
    return socket(AF_UNIX, SOCK_STREAM, 0);
  case 21:
    return dup(listening);
  case 22:
    return fcntl(listening, F_DUPFD, 3);
  default:
    return -2;
  }
}

static void way_unseen(void) {
  struct sockaddr_in who;
  for (int i = 0;; i++) {
    socklen_t size = sizeof who;
    int fd = next_client();
    close_unseen(fd);
    int made = make(i);
    if (made == -2) {
      break;
    }
    MUST(made == fd);
    MUST(getpeername(fd, (struct sockaddr *)&who, &size) == -1 || who.sin_family == AF_UNIX);
    MUST(send(fd, "lost", 4, MSG_DONTWAIT | MSG_NOSIGNAL) <= 4);
    MUST(close(fd) == 0);
  }
}

int main(int argc, char **argv) {
  MUST(argc == 3);
  static const struct {
    const char *name;
    void (*run)(void);
  } ways[] = {{"daemon", way_daemon},
              {"terminal", way_terminal},
              {"stream", way_stream},
              {"reopened", way_reopened},
              {"unseen", way_unseen}};
  listening = listen_on(atoi(argv[1]));
  for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
    if (strcmp(argv[2], ways[i].name) == 0) {
      ways[i].run();
      return 0;
    }
  }
  return 2;
}
