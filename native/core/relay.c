/* A connection on a ring in the hands of a program that knows of no ring, when the other end does not answer in time
 * (takeback.c): the program gets one end of a new stream, and a process with our library in it, bertha-relay
 * (native/relay), holds the other end and the connection, and copies.
 *
 * It inherits the connection as any program that is executed with one does (parcel.h), and is nobody's child: it was
 * forked twice.  Called before an exec, also in a vfork child, so nothing here allocates or takes a lock of the
 * process. */
#include "relay.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "parcel.h"

enum { HIGH = 900, PATH_ROOM = 4096, PATIENCE_SECONDS = 5 };
/* What the relay finds where. */
enum { AT_CONNECTION = 3, AT_END = RELAY_END, AT_WORD = 5, AT_FIRST_OTHER = 6 };

extern __thread uint32_t bertha_maybe_vforked
    __attribute__((visibility("hidden"), tls_model("initial-exec")));

static pid_t raw_fork(int signal_at_end) {
#if defined(__s390x__) || defined(__s390__)
  return (pid_t)REAL(syscall)(SYS_clone, 0L, (long)signal_at_end, 0L, 0L, 0L);
#else
  return (pid_t)REAL(syscall)(SYS_clone, (long)signal_at_end, 0L, 0L, 0L, 0L);
#endif
}

static bool same_end(int a, int b) {
  struct sockaddr_storage mine, theirs;
  socklen_t size = sizeof mine, their_size = sizeof theirs;
  memset(&mine, 0, sizeof mine);
  memset(&theirs, 0, sizeof theirs);
  return REAL(getsockname)(a, (struct sockaddr *)&mine, &size) == 0 &&
         REAL(getpeername)(b, (struct sockaddr *)&theirs, &their_size) == 0 && size == their_size &&
         memcmp(&mine, &theirs, size) == 0;
}

static bool tcp_pair(int family, int pair[2]) {
  struct sockaddr_storage at;
  memset(&at, 0, sizeof at);
  at.ss_family = (sa_family_t)family;
  socklen_t size = sizeof(struct sockaddr_in);
  if (family == AF_INET6) {
    ((struct sockaddr_in6 *)(void *)&at)->sin6_addr = in6addr_loopback;
    size = sizeof(struct sockaddr_in6);
  } else {
    ((struct sockaddr_in *)(void *)&at)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  }
  int on = 1;
  int listening = REAL(socket)(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  pair[1] = REAL(socket)(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  pair[0] = -1;
  if (listening >= 0 && pair[1] >= 0 && REAL(bind)(listening, (struct sockaddr *)&at, size) == 0 &&
      REAL(listen)(listening, 1) == 0 && REAL(getsockname)(listening, (struct sockaddr *)&at, &size) == 0 &&
      QUIET(connect)(pair[1], (struct sockaddr *)&at, size) == 0) {
    pair[0] = QUIET(accept4)(listening, NULL, NULL, SOCK_CLOEXEC);
  }
  bool good = pair[0] >= 0 && same_end(pair[1], pair[0]); /* nobody else has been quicker */
  for (int i = 0; i < 2; i++) {
    if (good) {
      REAL(setsockopt)(pair[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    } else if (pair[i] >= 0) {
      QUIET(close)(pair[i]);
    }
  }
  if (listening >= 0) {
    QUIET(close)(listening);
  }
  return good;
}

bool relay_pair(int family, int pair[2]) {
  return tcp_pair(family, pair) || REAL(socketpair)(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0;
}

/* ---- in the process that becomes the relay ------------------------------------------------------- */

static const char *own_path(void) {
  Dl_info us;
  return dladdr(&bertha, &us) != 0 ? us.dli_fname : NULL;
}

static bool relay_path(char *path) {
  static const char name[] = "bertha-relay";
  const char *ours = own_path();
  const char *slash = ours != NULL ? strrchr(ours, '/') : NULL;
  size_t size = slash != NULL ? (size_t)(slash - ours) + 1 : 0;
  if (slash == NULL || size + sizeof name > PATH_ROOM) {
    return false;
  }
  memcpy(path, ours, size);
  memcpy(path + size, name, sizeof name);
  return faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) == 0;
}

static void close_on_exec_from(int first) {
  if (REAL(syscall)(SYS_close_range, (long)first, ~0u, 4L /* CLOSE_RANGE_CLOEXEC */) == 0) {
    return;
  }
  for (int fd = first; fd < 65536; fd++) { /* before Linux 5.11 */
    REAL(fcntl)(fd, F_SETFD, FD_CLOEXEC);
  }
}

/* The variable as our own program has it, if it names us; it may name a sanitizer, too. */
static const char *own_preload(void) {
  static const char name[] = "LD_PRELOAD=";
  for (char **e = environ; e != NULL && *e != NULL; e++) {
    if (strncmp(*e, name, sizeof name - 1) == 0 && own_path() != NULL && strstr(*e, own_path()) != NULL) {
      return *e + sizeof name - 1;
    }
  }
  return own_path();
}

struct variables {
  char space[PATH_ROOM + 2048];
  size_t used;
  char *env[16];
  int count;
};

static void add(struct variables *v, const char *name, const char *value) {
  size_t size = strlen(name) + strlen(value) + 2;
  if (*value != '\0' && size <= sizeof v->space - v->used) {
    v->env[v->count++] = v->space + v->used;
    strcpy(v->space + v->used, name);
    strcat(v->space + v->used, "=");
    strcat(v->space + v->used, value);
    v->used += size;
  }
}

static bool send_end(int to, int fd) {
  char byte = 0;
  union {
    struct cmsghdr align;
    char space[CMSG_SPACE(sizeof fd)];
  } control;
  memset(&control, 0, sizeof control);
  struct iovec part = {&byte, 1};
  struct msghdr msg = {.msg_iov = &part,
                       .msg_iovlen = 1,
                       .msg_control = control.space,
                       .msg_controllen = sizeof control.space};
  struct cmsghdr *head = CMSG_FIRSTHDR(&msg);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(sizeof fd);
  memcpy(CMSG_DATA(head), &fd, sizeof fd);
  return QUIET(sendmsg)(to, &msg, MSG_NOSIGNAL) == 1;
}

/* Our books are those of another process: a connection is found by its cookie, whose number another one may have from here on. */
static void remember_cookies(struct conn *c, int fd) {
  conn_cookie(c, fd);
  for (int i = 0; i < AT_FIRST_OTHER; i++) {
    struct conn *there = conn_of(i);
    if (there != NULL) {
      conn_cookie(there, i);
    }
  }
}

static bool place(int connection, int end, int word) {
  int high[3] = {REAL(fcntl)(connection, F_DUPFD, HIGH), REAL(fcntl)(end, F_DUPFD, HIGH),
                 REAL(fcntl)(word, F_DUPFD, HIGH)};
  int nothing = QUIET(open)("/dev/null", O_RDWR | O_CLOEXEC, 0);
  bool good = nothing >= 0;
  for (int i = 0; i < 3; i++) {
    good = good && high[i] >= 0 && REAL(dup2)(nothing, i) == i && REAL(dup2)(high[i], AT_CONNECTION + i) >= 0;
  }
  close_on_exec_from(AT_FIRST_OTHER);
  return good;
}

__attribute__((noreturn)) static void become(struct conn *c, int fd, int word) {
  char path[PATH_ROOM];
  int pair[2];
  struct sockaddr_storage local;
  socklen_t size = sizeof local;
  static const struct linger resets = {.l_onoff = 1};
  bertha_maybe_vforked = 1; /* the books are another process's */
  REAL(syscall)(SYS_setsid);
  REAL(syscall)(SYS_chdir, "/");
  remember_cookies(c, fd);
  if (relay_path(path) && REAL(getsockname)(fd, (struct sockaddr *)&local, &size) == 0 &&
      relay_pair(local.ss_family, pair) && place(fd, pair[1], word)) {
    struct variables v = {.used = 0};
    struct handover h;
    char *handed[16 + 2];
    char *argv[] = {"bertha-relay", bertha.program, NULL};
    const char *preload = own_preload();
    /* until the relay takes it off, and so also if it does not get that far */
    REAL(setsockopt)(AT_END, SOL_SOCKET, SO_LINGER, &resets, sizeof resets);
    add(&v, "LD_PRELOAD", preload != NULL ? preload : "");
    add(&v, "BERTHA_AGENT", bertha.agent_path);
    add(&v, "BERTHA_CONNLOG", bertha.connlog);
    add(&v, "BERTHA_POLICY", bertha.policy);
    add(&v, "BERTHA_NAME", bertha.name[0] != '\0' ? bertha.name : bertha.program);
    if (bertha.spin_given && bertha.spin_ns == 0) {
      add(&v, "BERTHA_SPIN_US", "0");
    }
    v.env[v.count] = NULL;
    handover_begin(&h, path, false, false, v.env, handed);
    if (h.active && send_end(AT_WORD, pair[0])) { /* only now: the connection is held by us as well */
      REAL(execve)(path, argv, handed);
    }
    handover_failed(&h);
  }
  REAL(_exit)(1);
  __builtin_unreachable();
}

/* ---- in the process that has the connection ------------------------------------------------------ */

static int receive_end(int from) {
  char byte;
  int fd = -1;
  union {
    struct cmsghdr align;
    char space[CMSG_SPACE(sizeof fd)];
  } control;
  struct iovec part = {&byte, 1};
  struct msghdr msg = {.msg_iov = &part,
                       .msg_iovlen = 1,
                       .msg_control = control.space,
                       .msg_controllen = sizeof control.space};
  ssize_t n;
  do {
    n = QUIET(recvmsg)(from, &msg, MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  struct cmsghdr *head = n == 1 ? CMSG_FIRSTHDR(&msg) : NULL;
  if (head != NULL && head->cmsg_type == SCM_RIGHTS && head->cmsg_len == CMSG_LEN(sizeof fd)) {
    memcpy(&fd, CMSG_DATA(head), sizeof fd);
  }
  return fd;
}

/* The new end behaves as the program has told the connection to. */
static void same_settings(int from, int to) {
  static const int options[] = {SO_RCVTIMEO, SO_SNDTIMEO, SO_LINGER, SO_KEEPALIVE, SO_RCVLOWAT};
  for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
    char value[64];
    socklen_t size = sizeof value;
    if (REAL(getsockopt)(from, SOL_SOCKET, options[i], value, &size) == 0) {
      REAL(setsockopt)(to, SOL_SOCKET, options[i], value, size);
    }
  }
  int flags = REAL(fcntl)(from, F_GETFL);
  if (flags >= 0) {
    REAL(fcntl)(to, F_SETFL, flags);
  }
}

bool relay_begin(struct relay *r, struct conn *c, int fd) {
  int word[2];
  sigset_t all, before;
  int status;
  r->end = r->word = -1;
  if (REAL(socketpair)(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, word) != 0) {
    return false;
  }
  struct timeval patience = {PATIENCE_SECONDS, 0};
  REAL(setsockopt)(word[0], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, &before);
  pid_t between = raw_fork(0); /* no SIGCHLD, and not seen by a wait for any child */
  if (between == 0) {
    pid_t relay = raw_fork(SIGCHLD);
    if (relay == 0) {
      QUIET(close)(word[0]);
      become(c, fd, word[1]);
    }
    REAL(_exit)(relay < 0);
  }
  QUIET(close)(word[1]);
  while (between > 0 && REAL(syscall)(SYS_wait4, (long)between, &status, (long)__WALL, NULL) < 0 &&
         errno == EINTR) {
  }
  int end = between > 0 ? receive_end(word[0]) : -1;
  sigprocmask(SIG_SETMASK, &before, NULL);
  if (end < 0) {
    QUIET(close)(word[0]);
    return false;
  }
  int high = REAL(fcntl)(end, F_DUPFD_CLOEXEC, HIGH);
  if (high >= 0) {
    QUIET(close)(end);
    end = high;
  }
  same_settings(fd, end);
  relay_made(c, end);
  r->end = end;
  r->word = word[0];
  return true;
}

bool relay_again(struct relay *r, const struct relay *first) {
  r->word = -1;
  r->end = REAL(fcntl)(first->end, F_DUPFD_CLOEXEC, HIGH);
  return r->end >= 0;
}

static void let_go(struct relay *r) {
  if (r->word >= 0) {
    QUIET(close)(r->word);
  }
  QUIET(close)(r->end);
}

void relay_go(struct relay *r) {
  if (r->word >= 0) {
    QUIET(send)(r->word, "", 1, MSG_NOSIGNAL);
  }
  let_go(r);
}

void relay_cancel(struct relay *r) {
  let_go(r);
}
