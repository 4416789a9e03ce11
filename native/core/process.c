/* The process as a whole: start, settings, hidden descriptors, fork. */
#include "shim.h"

#include <fcntl.h>
#include <fnmatch.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "agentc.h"
#include "borrow.h"
#include "carried.h"
#include "connlog.h"
#include "dgram.h"
#include "local.h"
#include "orphans.h"
#include "room.h"
#include "stdfile.h"
#include "wait.h"

#ifndef BERTHA_VERSION
#define BERTHA_VERSION "0"
#endif
#ifndef SO_COOKIE
#define SO_COOKIE 57
#endif
#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

struct bertha_process bertha = {.table_fd = -1};
int bertha_log_level;

/* bertha-run reads this in the file, without loading it. */
__attribute__((used)) static const char version_mark[] = "bertha_shim_version=" BERTHA_VERSION;

static BERTHA_TLS uint32_t my_tid;

uint32_t bertha_tid(void) {
  if (UNLIKELY(my_tid == 0)) {
    my_tid = (uint32_t)REAL(syscall)(SYS_gettid);
  }
  return my_tid;
}

uint64_t bertha_cookie(int fd) {
  uint64_t cookie = 0;
  socklen_t size = sizeof cookie;
  int saved = errno;
  if (REAL(getsockopt)(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size) != 0) {
    cookie = 0;
  }
  errno = saved;
  return cookie;
}

/* Asked of the kernel when a connection is handed on, not when it is made: few ever are. */
uint64_t conn_cookie(struct conn *c, int fd) {
  uint64_t cookie = atomic_load_explicit(&c->cookie, memory_order_relaxed);
  if (cookie == 0) {
    cookie = bertha_cookie(fd);
    atomic_store_explicit(&c->cookie, cookie, memory_order_relaxed);
  }
  return cookie;
}

int64_t bertha_now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Only when BERTHA_LOG asks for it: never otherwise on a program's stderr. */
void bertha_debug(const char *format, ...) {
  char line[512];
  int saved = errno;
  int n = snprintf(line, sizeof line, "bertha[%d]: ", bertha.pid);
  va_list args;
  va_start(args, format);
  int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, format, args);
  va_end(args);
  if (m > 0) {
    n += m < (int)sizeof line - n - 1 ? m : (int)sizeof line - n - 2;
  }
  line[n] = '\n';
  if (QUIET(write)(2, line, (size_t)n + 1) < 0) {
    errno = saved;
  }
  errno = saved;
}

/* Set by vfork and clone (calls/vfork.c) in the thread that called them, and so in a child that shares its memory. */
__attribute__((visibility("hidden"), tls_model("initial-exec"))) __thread uint32_t bertha_maybe_vforked;

/* In a vfork child, which shares our memory and must not touch our books, or in a child that a raw clone() made and
 * that never ran the fork handlers. */
bool bertha_in_forked_stranger(void) {
  if (LIKELY(bertha_maybe_vforked == 0)) {
    return false;
  }
  if ((int)REAL(syscall)(SYS_getpid) != bertha.pid) {
    return true;
  }
  bertha_maybe_vforked = 0; /* the parent is back */
  return false;
}

/* ---- hidden descriptors ------------------------------------------------------------------------ */

#define FD_HIDDEN 0xffffffffu /* in fd_entry.conn's place nothing, in .set this */

bool bertha_is_hidden(int fd) {
  return bertha.fds != NULL && (unsigned)fd < BERTHA_FDS &&
         atomic_load_explicit(&bertha.fds[fd].set, memory_order_relaxed) == FD_HIDDEN;
}

/* High numbers, so that the program gets the low ones it would have got; not at the very top, because
 * the kernel's table of a process grows with its highest descriptor and fork copies it. */
static void mark_hidden(int fd) {
  if ((unsigned)fd < BERTHA_FDS && bertha.fds != NULL) {
    atomic_store(&bertha.fds[fd].set, FD_HIDDEN);
    conn_reach(fd);
  }
}

/* Where these are taken or forbidden, lower ones: a program with many carried connections has one for each. */
static int high_copy(int fd) {
  enum { FIRST = 960, LOWEST = 3 };
  int copy = REAL(fcntl)(fd, F_DUPFD_CLOEXEC, FIRST);
  struct rlimit limit;
  if (copy >= 0 || getrlimit(RLIMIT_NOFILE, &limit) != 0) {
    return copy;
  }
  int start = limit.rlim_cur < FIRST + 64 ? (int)limit.rlim_cur - 64 : FIRST / 2;
  for (; copy < 0 && start > LOWEST; start /= 2) {
    copy = REAL(fcntl)(fd, F_DUPFD_CLOEXEC, start);
  }
  return copy >= 0 ? copy : REAL(fcntl)(fd, F_DUPFD_CLOEXEC, LOWEST);
}

int bertha_hidden_copy(int fd) {
  int copy = high_copy(fd);
  if (copy >= 0) {
    mark_hidden(copy);
  }
  return copy;
}

int bertha_hide_fd(int fd) {
  int moved = high_copy(fd);
  if (moved < 0) {
    moved = fd; /* better visible than not at all */
  } else {
    QUIET(close)(fd);
  }
  mark_hidden(moved);
  return moved;
}

int bertha_unhide(int fd) {
  int moved = REAL(fcntl)(fd, F_DUPFD_CLOEXEC, fd + 1);
  if (moved < 0) {
    return -1;
  }
  atomic_store(&bertha.fds[fd].set, 0);
  if ((unsigned)moved < BERTHA_FDS) {
    atomic_store(&bertha.fds[moved].set, FD_HIDDEN);
    conn_reach(moved);
  }
  agent_fd_moved(fd, moved);
  carried_fd_moved(fd, moved);
  link_fd_moved(fd, moved);
  wait_fd_moved(fd, moved);
  if (bertha.table_fd == fd) {
    bertha.table_fd = moved;
  }
  inherit_fd_moved(fd, moved);
  return 0;
}

void bertha_close_hidden(int fd) {
  if (fd >= 0) {
    if ((unsigned)fd < BERTHA_FDS && bertha.fds != NULL) {
      atomic_store(&bertha.fds[fd].set, 0);
    }
    QUIET(close)(fd);
  }
}

/* ---- start ------------------------------------------------------------------------------------- */

static void copy_text(char *to, size_t size, const char *from) {
  if (from != NULL) {
    strncpy(to, from, size - 1);
    to[size - 1] = '\0';
  }
}

static void find_agent_path(void) {
  const char *given = getenv("BERTHA_AGENT");
  if (given != NULL && *given != '\0') {
    copy_text(bertha.agent_path, sizeof bertha.agent_path, given);
    return;
  }
  const char *run = getenv("XDG_RUNTIME_DIR");
  if (geteuid() == 0) {
    copy_text(bertha.agent_path, sizeof bertha.agent_path, "/run/bertha/agent.sock");
  } else if (run != NULL && *run != '\0') {
    snprintf(bertha.agent_path, sizeof bertha.agent_path, "%s/bertha/agent.sock", run);
  } else {
    snprintf(bertha.agent_path, sizeof bertha.agent_path, "/tmp/bertha-%u/agent.sock", (unsigned)geteuid());
  }
}

static void before_fork(void) {
  if (!bertha_in_forked_stranger()) {
    local_fork_begin();
    conn_fork_prepare();
    borrow_end_all(NULL); /* now that all are shared, none is borrowed anew */
  }
}

static void in_parent(void) {
  if (!bertha_in_forked_stranger()) {
    conn_fork_done(false);
    local_forked();
  }
}

static void in_child(void) {
  conn_fork_done(true);
  bertha.pid = (int)REAL(syscall)(SYS_getpid);
  orphans_after_fork();
  my_tid = 0;
  agent_after_fork();
  carried_after_fork();
  borrow_after_fork();
  dgram_after_fork();
  local_after_fork();
  wait_after_fork();
  stdfile_after_fork();
}

void bertha_follow_forks(void) {
  pthread_atfork(before_fork, in_parent, in_child);
}

/* An interpreter's script may be what a rule means, and we do not read its command line. */
static bool is_interpreter(void) {
  static const char *const names[] = {"python*", "pypy*", "perl*", "ruby*", "node*", "*sh"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    if (fnmatch(names[i], bertha.program, 0) == 0) {
      return true;
    }
  }
  return false;
}

/* "server=redis-server;any=*": programs whose policy requires chunnels, from who has read it: bertha-run by the
 * environment, or a door of Python. */
void bertha_read_musts(const char *text) {
  bertha.must_serve = bertha.must_connect = false;
  bertha.must_serve_datagrams = bertha.must_send_datagrams = false;
  while (text != NULL && *text != '\0') {
    size_t whole = strcspn(text, ";");
    size_t side = strcspn(text, "=;");
    char glob[128] = "*";
    if (side < whole && whole - side - 1 < sizeof glob) {
      memcpy(glob, text + side + 1, whole - side - 1);
      glob[whole - side - 1] = '\0';
    }
    char exe[512];
    ssize_t n = strchr(glob, '/') != NULL ? readlink("/proc/self/exe", exe, sizeof exe - 1) : -1;
    exe[n > 0 ? n : 0] = '\0';
    if (fnmatch(glob, bertha.program, 0) == 0 || fnmatch(glob, exe, 0) == 0 || is_interpreter()) {
      bertha.must_serve |= strncmp(text, "server", side) == 0 || strncmp(text, "any", side) == 0;
      bertha.must_connect |= strncmp(text, "client", side) == 0 || strncmp(text, "any", side) == 0;
      bertha.must_serve_datagrams |=
          strncmp(text, "udp-server", side) == 0 || strncmp(text, "udp-any", side) == 0;
      bertha.must_send_datagrams |=
          strncmp(text, "udp-client", side) == 0 || strncmp(text, "udp-any", side) == 0;
    }
    text += whole + (text[whole] == ';');
  }
}

/* `bertha-run --require` asks for a sign of life. */
static void answer_probe(void) {
  const char *probe = getenv("BERTHA_PROBE_FD");
  if (probe == NULL) {
    return;
  }
  int fd = atoi(probe);
  static const char ok[] = "ok " BERTHA_VERSION "\n";
  if (fd > 2 && QUIET(write)(fd, ok, sizeof ok - 1) > 0) {
    QUIET(close)(fd);
  }
  unsetenv("BERTHA_PROBE_FD");
}

void bertha_init(void) {
  static _Atomic int begun;
  if (atomic_exchange(&begun, 1)) {
    return;
  }
  int saved = errno;
  bertha.pid = (int)REAL(syscall)(SYS_getpid);
  answer_probe();
  const char *text = getenv("BERTHA_LOG");
  if (text != NULL && *text != '\0') {
    bertha_log_level = strcmp(text, "debug") == 0 ? 2 : strcmp(text, "info") == 0 ? 1 : atoi(text);
  }
  text = getenv("BERTHA_DISABLE");
  if (text != NULL && *text != '\0' && strcmp(text, "0") != 0) {
    errno = saved;
    return;
  }
  size_t size = sizeof(struct fd_entry) * BERTHA_FDS;
  bertha.fds = room_allows(size) ? room_map(NULL, size, -1) : NULL;
  if (bertha.fds == NULL) {
    errno = saved;
    return;
  }
  copy_text(bertha.program, sizeof bertha.program, program_invocation_short_name);
  copy_text(bertha.name, sizeof bertha.name, getenv("BERTHA_NAME"));
  copy_text(bertha.policy, sizeof bertha.policy, getenv("BERTHA_POLICY"));
  copy_text(bertha.connlog, sizeof bertha.connlog, getenv("BERTHA_CONNLOG"));
  bertha_read_musts(getenv("BERTHA_MUST"));
  find_agent_path();
  bertha.spin_ns = 50000; /* beyond the time a peer needs for a batch of 50 small requests */
  text = getenv("BERTHA_SPIN_US");
  if (text != NULL && *text != '\0') {
    char *end;
    long us = strtol(text, &end, 10);
    if (*end == '\0' && us >= 0 && us <= 1000000) {
      bertha.spin_ns = us * 1000;
      bertha.spin_given = true;
    } else if (bertha_log_level > 0) {
      bertha_debug("BERTHA_SPIN_US=%s is not a number of microseconds from 0 to 1000000: ignored", text);
    }
  }
  bertha_follow_forks();
  bertha.enabled = true;
  inherit_connections();
  heap_keeps_large_reads();
  errno = saved;
}

__attribute__((constructor)) static void at_load(void) {
  bertha_real_init();
  bertha_init();
}

__attribute__((destructor)) static void at_exit(void) {
  if (!bertha_in_forked_stranger()) {
    stdfile_flush();
  }
  connlog_close_all();
}
