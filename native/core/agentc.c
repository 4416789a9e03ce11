/* The conversation with the agent: one request, one reply, on a connection that stays open so that the
 * agent learns of our end. */
#include "agentc.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { RETRY_NS = 200000000, ANSWER_MS = 2000, QUICK_ANSWER_MS = 400, FDS_MAX = 5 };
#define RETRY_MAX_NS                                                                                         \
  30000000000 /* one that does not answer costs a connect() its patience no oftener than that */

static struct {
  _Atomic uint32_t lock;
  int fd;
  int pid; /* whose connection it is: a forked child makes its own */
  uint32_t seq;
  int64_t not_before;
  int64_t silence;      /* how long it is left alone after its next failure to answer */
  int patience_ms;      /* as set on the socket */
  _Atomic uint32_t dag; /* BERTHA_HELLO_* */
  bool brings;          /* there is something that BRING says */
  bool told;            /* it, by this connection */
  int hung_up;          /* agents at it, one after the other */
  size_t brought;
  char pairs[BERTHA_BRING_MAX];
} agent = {.fd = -1};

void bertha_close_hidden(int fd);

void agent_after_fork(void) {
  atomic_store(&agent.lock, 0);
  if (agent.fd >= 0) {
    bertha_close_hidden(agent.fd); /* the parent's: its end must mean the parent's end */
    agent.fd = -1;
  }
  agent.not_before = 0;
  agent.silence = 0;
}

void agent_fd_moved(int from, int to) {
  if (agent.fd == from) {
    agent.fd = to;
  }
}

static void hang_up(bool silent) {
  if (agent.fd >= 0) {
    bertha_close_hidden(agent.fd);
    agent.fd = -1;
  }
  if (!silent || agent.silence < RETRY_NS) {
    agent.silence = RETRY_NS;
  }
  agent.not_before = bertha_now_ns() + agent.silence;
  agent.silence = agent.silence < RETRY_MAX_NS / 2 ? 2 * agent.silence : RETRY_MAX_NS;
}

/* What stands in the way of a program's first sleep is soon given up.  Not so a part in a link, at either end: the agent has
 * just answered, so it is there, and only waits for a processor; and not to have it leaves all that the client connects
 * meanwhile plain for good (of 50 connections of 50 threads on two processors 47 once were). */
static int patience_of(enum bertha_op op) {
  return op == BERTHA_OP_RESOLVE || op == BERTHA_OP_BELL_NEW || op == BERTHA_OP_BELL_GET ? QUICK_ANSWER_MS
                                                                                         : ANSWER_MS;
}

static void be_patient(int fd, int ms) {
  if (agent.patience_ms != ms || agent.fd < 0) {
    struct timeval patience = {ms / 1000, ms % 1000 * 1000};
    REAL(setsockopt)(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    REAL(setsockopt)(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    agent.patience_ms = ms;
  }
}

static int send_message(const struct bertha_msg *head, const void *body, size_t body_size, const int *fds,
                        int count) {
  struct iovec parts[2] = {{(void *)(uintptr_t)head, sizeof *head}, {(void *)(uintptr_t)body, body_size}};
  union {
    struct cmsghdr align;
    char space[CMSG_SPACE(sizeof(int) * FDS_MAX)];
  } control;
  struct msghdr msg = {.msg_iov = parts, .msg_iovlen = body_size > 0 ? 2 : 1};
  if (count > 0) {
    memset(&control, 0, sizeof control);
    msg.msg_control = control.space;
    msg.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count);
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count);
    memcpy(CMSG_DATA(c), fds, sizeof(int) * (size_t)count);
  }
  ssize_t n;
  do {
    n = QUIET(sendmsg)(agent.fd, &msg, MSG_NOSIGNAL);
  } while (n < 0 && errno == EINTR);
  return n == (ssize_t)(sizeof *head + body_size) ? 0 : -1;
}

static int receive_message(struct bertha_msg *head, void *body, size_t body_size, int *fds, int max_fds) {
  union {
    struct cmsghdr align;
    char space[CMSG_SPACE(sizeof(int) * FDS_MAX)];
  } control;
  struct iovec parts[2] = {{head, sizeof *head}, {body, body_size}};
  struct msghdr msg = {.msg_iov = parts,
                       .msg_iovlen = body_size > 0 ? 2 : 1,
                       .msg_control = control.space,
                       .msg_controllen = sizeof control.space};
  ssize_t n;
  do {
    n = QUIET(recvmsg)(agent.fd, &msg, MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0) {
    return -1;
  }
  int got = 0; /* also an empty message may bring some */
  for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c != NULL; c = CMSG_NXTHDR(&msg, c)) {
    if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
      size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; i++) {
        int fd;
        memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
        if (got < max_fds) {
          fds[got++] = fd;
        } else {
          QUIET(close)(fd);
        }
      }
    }
  }
  bool enough = (size_t)n == sizeof *head + body_size;
  if (head->op == BERTHA_OP_NEGOTIATE) { /* its plan is as long as it is */
    const struct bertha_negotiate_reply *reply = body;
    enough = (size_t)n >= sizeof *head + sizeof *reply &&
             (size_t)n == sizeof *head + sizeof *reply + reply->plan_size;
  }
  bool whole = (size_t)n >= sizeof *head && (msg.msg_flags & MSG_TRUNC) == 0 && (head->status != 0 || enough);
  if (whole && (msg.msg_flags & MSG_CTRUNC) != 0) { /* none was left: to hang up would end all that we have */
    head->status = BERTHA_WHY_NO_DESCRIPTOR;
  }
  if (!whole) {
    for (int i = 0; i < got; i++) {
      QUIET(close)(fds[i]);
      fds[i] = -1;
    }
    return -1;
  }
  return 0;
}

static int exchange(enum bertha_op op, const void *body, size_t body_size, const int *send_fds,
                    int send_count, void *reply, size_t reply_size, int *fds, int max_fds, uint32_t *status) {
  struct bertha_msg head = {BERTHA_MSG_MAGIC, BERTHA_PROTOCOL_VERSION, (uint16_t)op, ++agent.seq, 0};
  uint32_t seq = agent.seq;
  if (send_message(&head, body, body_size, send_fds, send_count) != 0) {
    return -1;
  }
  if (op == BERTHA_OP_UNLISTEN) {
    *status = 0;
    return 0;
  }
  if (receive_message(&head, reply, reply_size, fds, max_fds) != 0) {
    return -1;
  }
  bool ours = head.magic == BERTHA_MSG_MAGIC && head.version == BERTHA_PROTOCOL_VERSION && head.op == op &&
              head.seq == seq;
  if (!ours || head.status != 0) { /* a refusal has no descriptors: nobody would close them */
    for (int i = 0; i < max_fds; i++) {
      if (fds[i] >= 0) {
        QUIET(close)(fds[i]);
        fds[i] = -1;
      }
    }
  }
  if (!ours) {
    return -1;
  }
  *status = head.status;
  return 0;
}

static void fill_hello(struct bertha_hello *hello) {
  memset(hello, 0, sizeof *hello);
  hello->pid = (uint32_t)bertha.pid;
  hello->layout_version = BERTHA_LAYOUT_VERSION;
  memcpy(hello->program, bertha.program, sizeof hello->program);
  memcpy(hello->name, bertha.name, sizeof hello->name);
  memcpy(hello->policy, bertha.policy, sizeof hello->policy);
  ssize_t n = readlink("/proc/self/exe", hello->exe, sizeof hello->exe - 1);
  hello->exe[n > 0 ? n : 0] = '\0';
  int fd = QUIET(open)("/proc/self/cmdline", O_RDONLY | O_CLOEXEC, 0);
  if (fd >= 0) {
    n = QUIET(read)(fd, hello->args, sizeof hello->args);
    hello->args_len = n > 0 ? (uint32_t)n : 0;
    QUIET(close)(fd);
  }
#ifdef BERTHA_VERSION
  strncpy(hello->package_version, BERTHA_VERSION, sizeof hello->package_version - 1);
#endif
}

/* What the program has registered is told once by each connection: also by a forked child's, and to an agent that
 * came later.  One of another version, which does not know the message, hangs up: then it is not said any more. */
static uint32_t tell_brought(void) {
  if (agent.told || !agent.brings) {
    return 0;
  }
  uint32_t status;
  agent.told = true;
  be_patient(agent.fd, ANSWER_MS); /* the classes are imported meanwhile */
  errno = 0;
  if (exchange(BERTHA_OP_BRING, agent.pairs, agent.brought, NULL, 0, NULL, 0, NULL, 0, &status) != 0) {
    bool silent = errno == EAGAIN;
    hang_up(silent);
    errno = silent ? EAGAIN : 0;
    if (++agent.hung_up >= 2) {
      agent.brings = false;
    }
    return BERTHA_WHY_NO_AGENT;
  }
  agent.hung_up = 0;
  return 0;
}

/* 0 when connected and greeted. */
static uint32_t dial(int patience_ms) {
  if (agent.fd >= 0 && agent.pid == bertha.pid) {
    return tell_brought();
  }
  if (bertha_now_ns() < agent.not_before) {
    return BERTHA_WHY_NO_AGENT;
  }
  int fd = REAL(socket)(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0) {
    return errno == EMFILE || errno == ENFILE ? BERTHA_WHY_NO_DESCRIPTOR : BERTHA_WHY_NO_AGENT;
  }
  be_patient(fd, patience_ms);
  struct sockaddr_un where = {.sun_family = AF_UNIX};
  memcpy(where.sun_path, bertha.agent_path, sizeof where.sun_path - 1);
  struct ucred owner;
  socklen_t size = sizeof owner;
  if (QUIET(connect)(fd, (struct sockaddr *)&where, sizeof where) != 0 ||
      REAL(getsockopt)(fd, SOL_SOCKET, SO_PEERCRED, &owner, &size) != 0 ||
      (owner.uid != geteuid() && owner.uid != 0)) {
    bool silent = errno == EAGAIN; /* its queue of connections is full */
    QUIET(close)(fd);
    hang_up(silent);
    return BERTHA_WHY_NO_AGENT;
  }
  agent.fd = bertha_hide_fd(fd);
  agent.pid = bertha.pid;
  struct bertha_hello hello;
  struct bertha_hello_reply answer;
  uint32_t status = 0;
  fill_hello(&hello);
  bertha_table_open();
  if (exchange(BERTHA_OP_HELLO, &hello, sizeof hello, &bertha.table_fd, bertha.table_fd >= 0 ? 1 : 0, &answer,
               sizeof answer, NULL, 0, &status) != 0) {
    hang_up(errno == EAGAIN);
    return BERTHA_WHY_NO_AGENT;
  }
  if (status != 0) {
    hang_up(false);
    agent.not_before = bertha_now_ns() + 10 * (int64_t)RETRY_NS;
    return status;
  }
  atomic_store(&agent.dag, answer.dag);
  agent.told = false;
  return tell_brought();
}

bool agent_is_met(void) {
  return (agent.fd >= 0 && agent.pid == bertha.pid) || agent.brings;
}

/* Asked for each connection of a plain peer, for the reason in the log alone: so not more than once in a millisecond. */
bool agent_has_gone(void) {
  static _Atomic int64_t ask_again;
  int64_t now = bertha_now_ns();
  if (agent.fd < 0 || agent.pid != bertha.pid ||
      now < atomic_load_explicit(&ask_again, memory_order_relaxed)) {
    return false;
  }
  struct pollfd p = {.fd = agent.fd};
  bool gone = QUIET(poll)(&p, 1, 0) == 1 && (p.revents & (POLLHUP | POLLERR));
  if (!gone) {
    atomic_store_explicit(&ask_again, now + 1000000, memory_order_relaxed);
  }
  return gone;
}

void agent_greet(void) {
  if (agent.fd >= 0 && agent.pid == bertha.pid) {
    return;
  }
  if (!bertha_in_forked_stranger() && bertha_lock(&agent.lock)) {
    int saved = errno;
    dial(patience_of(BERTHA_OP_HELLO));
    bertha_unlock(&agent.lock);
    errno = saved;
  }
}

bool agent_bring(const char *pairs, size_t size) {
  if (size > sizeof agent.pairs) {
    return false;
  }
  if (bertha_in_forked_stranger() || !bertha_lock(&agent.lock)) {
    return false;
  }
  int saved = errno;
  memcpy(agent.pairs, pairs, size);
  agent.brought = size;
  agent.brings = true;
  agent.told = false;
  agent.hung_up = 0;
  if (agent.fd >= 0 && agent.pid == bertha.pid && tell_brought() != 0 && errno != EAGAIN) {
    agent.not_before = 0; /* that agent has ended; another may have taken its place */
  }
  bertha_unlock(&agent.lock);
  errno = saved;
  return true;
}

bool agent_client_dags(void) {
  return agent_dags(BERTHA_HELLO_CLIENT_DAGS);
}

bool agent_dags(uint32_t which) {
  return (atomic_load_explicit(&agent.dag, memory_order_relaxed) & which) != 0;
}

uint32_t agent_call(enum bertha_op op, const void *body, size_t body_size, const int *send_fds,
                    int send_count, void *reply, size_t reply_size, int *fds, int max_fds) {
  for (int i = 0; i < max_fds; i++) {
    fds[i] = -1;
  }
  if (bertha.is_carrier || bertha_in_forked_stranger() || !bertha_lock(&agent.lock)) {
    return BERTHA_WHY_NO_AGENT;
  }
  int saved = errno;
  int patience_ms = patience_of(op);
  uint32_t status = BERTHA_WHY_NO_AGENT;
  for (int tries = 0; tries < 2; tries++) {
    bool old = agent.fd >= 0 && agent.pid == bertha.pid;
    status = dial(patience_ms);
    if (status != 0) {
      break;
    }
    be_patient(agent.fd, patience_ms);
    errno = 0;
    if (exchange(op, body, body_size, send_fds, send_count, reply, reply_size, fds, max_fds, &status) == 0) {
      agent.silence = status == 0 ? 0 : agent.silence;
      break;
    }
    bool silent = errno == EAGAIN;
    hang_up(silent);
    status = BERTHA_WHY_NO_AGENT;
    if (silent || !old) {
      break;
    }
    agent.not_before = 0; /* that agent has ended; another may have taken its place */
  }
  bertha_unlock(&agent.lock);
  errno = saved;
  return status;
}
