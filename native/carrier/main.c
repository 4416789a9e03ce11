/* bertha-carrier --control FD: carries the connections that shims hand over (carrier.h), one thread, one epoll.
 *
 * FD is one end of a SEQPACKET socketpair, whose other end the agent has: shims and secrets come by it, questions and
 * verdicts about plans go by it, in msgpack.  When the agent is gone the connections go on; the carrier ends when there
 * is nobody left. */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include "datagrams.h"
#include "place.h"
#include "session.h"

enum { EVENTS = 128, WARM_MS = 1000 };
#define SECOND 1000000000ll
#define HANDSHAKE_NS (10 * SECOND)
#define SILENCE_NS (1 * SECOND) /* MAYBE: who says nothing for so long waits for the server's first word */
#define OPENING_SURE 6          /* bytes: more than these of a client may be half of a ClientHello */

/* What epoll tells us of: the lowest bits of the pointer say which. */
enum what {
  SESSION_TCP = 0,
  SESSION_PROGRAM = 1,
  SHIM = 2,
  CONTROL = 3,
  BELL = 4,
  DATAGRAMS_UDP = 5,
  DATAGRAMS_PROGRAM = 6,
  DATAGRAMS_BESIDE = 7,
  WHAT = 7
};

static int poller;
static struct session *sessions;
static unsigned session_count;
static struct session *ready_first, *ready_last;
static struct shim *shims;
static unsigned pending; /* sessions with a deadline */
static bool told_idle;

int64_t carrier_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * SECOND + t.tv_nsec;
}

static bool watch(int fd, void *who, enum what what, uint32_t events) {
  struct epoll_event e = {.events = events, .data.u64 = (uint64_t)(uintptr_t)who | (uint64_t)what};
  return epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e) == 0;
}

bool carrier_watch_bell(int fd, struct rings *who) {
  return watch(fd, who, BELL, EPOLLIN | EPOLLET);
}

void carrier_unwatch(int fd) {
  epoll_ctl(poller, EPOLL_CTL_DEL, fd, NULL);
}

#define EDGES (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET)

bool carrier_watch_datagrams(struct datagrams *d, int udp, int program) {
  uint32_t events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  return watch(udp, d, DATAGRAMS_UDP, events) && watch(program, d, DATAGRAMS_PROGRAM, events);
}

bool carrier_watch_beside(struct datagrams *d, int fd) {
  return watch(fd, d, DATAGRAMS_BESIDE, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
}

bool carrier_watch_tcp(struct session *s, bool again) {
  struct epoll_event e = {.events = EDGES | EPOLLOUT,
                          .data.u64 = (uint64_t)(uintptr_t)s | (uint64_t)SESSION_TCP};
  return epoll_ctl(poller, again ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, s->tcp, &e) == 0;
}

void carrier_watch_room(struct session *s) {
  struct epoll_event e = {.events = EDGES | EPOLLOUT,
                          .data.u64 = (uint64_t)(uintptr_t)s | (uint64_t)SESSION_PROGRAM};
  epoll_ctl(poller, EPOLL_CTL_MOD, s->program, &e); /* which tells of what there is already */
}

void carrier_queue(struct session *s) {
  if (!s->queued) {
    s->queued = true;
    s->next_ready = NULL;
    if (ready_last != NULL) {
      ready_last->next_ready = s;
    } else {
      ready_first = s;
    }
    ready_last = s;
  }
}

/* ---- messages with descriptors ------------------------------------------------------------------- */

void carrier_close_all(const int *fds, int count) {
  for (int i = 0; i < count; i++) {
    close(fds[i]);
  }
}

void carrier_new_shim(int fd, uint64_t uid) {
  struct shim *shim = calloc(1, sizeof *shim);
  if (shim == NULL || !watch(fd, shim, SHIM, EPOLLIN)) {
    free(shim);
    close(fd);
    return;
  }
  shim->fd = fd;
  shim->uid = uid;
  shim->next = shims;
  shims = shim;
  told_idle = false;
}

/* When neither the program nor a connection of it is there any more. */
static void drop_shim(struct shim *shim) {
  if (shim->fd >= 0 || shim->sessions > 0) {
    return;
  }
  for (struct shim **at = &shims; *at != NULL; at = &(*at)->next) {
    if (*at == shim) {
      *at = shim->next;
      break;
    }
  }
  rings_drop(shim);
  if (shim->statuses != NULL) {
    munmap(shim->statuses, shim->status_count * sizeof *shim->statuses);
  }
  free(shim);
}

void carrier_hold(struct shim *shim) {
  shim->sessions++;
  session_count++;
}

void carrier_let_go(struct shim *shim) {
  shim->sessions--;
  session_count--;
  drop_shim(shim);
}

/* Of memory that does not shrink from now on: else its end would be our SIGBUS at somebody else's pleasure. */
bool carrier_sealed(int fd, struct stat *st) {
  int seals = fcntl(fd, F_GET_SEALS);
  bool sealed = seals >= 0 && (seals & F_SEAL_SHRINK);
  return (sealed || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0) && fstat(fd, st) == 0;
}

static bool shim_hello(struct shim *shim, const void *message, size_t size, int fd) {
  struct bertha_carrier_hello hello;
  struct stat st;
  if (size != sizeof hello || shim->statuses != NULL) {
    return false;
  }
  memcpy(&hello, message, sizeof hello);
  size_t bytes = (size_t)hello.status_count * sizeof *shim->statuses;
  if (hello.status_count == 0 || hello.status_count > 1u << 20 || !carrier_sealed(fd, &st) ||
      (size_t)st.st_size < bytes) {
    return false;
  }
  void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED) {
    return false;
  }
  shim->statuses = p;
  shim->status_count = hello.status_count;
  return true;
}

void carrier_forget(struct session *s) {
  carrier_answered(s);
  if (s->previous != NULL) {
    s->previous->next = s->next;
  } else if (sessions == s) {
    sessions = s->next;
  }
  if (s->next != NULL) {
    s->next->previous = s->previous;
  }
  struct session *before = NULL;
  for (struct session *r = ready_first; s->queued && r != NULL; before = r, r = r->next_ready) {
    if (r == s) {
      if (before != NULL) {
        before->next_ready = s->next_ready;
      } else {
        ready_first = s->next_ready;
      }
      if (ready_last == s) {
        ready_last = before;
      }
      break;
    }
  }
  /* Closing is not enough: the program has a duplicate of the TCP socket, which keeps it in the set. */
  epoll_ctl(poller, EPOLL_CTL_DEL, s->tcp, NULL);
  epoll_ctl(poller, EPOLL_CTL_DEL, s->program, NULL);
  trust_give_back(s->secrets);
  rings_close(s);
  carrier_let_go(s->shim);
}

/* `ring`: NULL: by the socketpair alone. */
static void carry(struct shim *shim, const struct bertha_carrier_carry *head,
                  const struct bertha_carrier_carry_ring *ring, const uint8_t *plan, int tcp, int program) {
  struct session *s = calloc(1, sizeof *s);
  if (s == NULL) {
    close(tcp);
    close(program);
    return;
  }
  s->shim = shim;
  carrier_hold(shim);
  s->next = sessions;
  if (sessions != NULL) {
    sessions->previous = s;
  }
  sessions = s;
  s->tcp = tcp;
  s->program = program;
  s->server = head->side != 0;
  s->mode = head->mode;
  s->listener = head->listener;
  s->secrets = trust_secrets(head->listener, s->server, shim->uid);
  s->status_index = head->status_index;
  if (s->status_index < shim->status_count) {
    s->life = __atomic_load_n(&shim->statuses[s->status_index].life, __ATOMIC_ACQUIRE);
  }
  s->tcp_in = s->tcp_out = s->program_in = s->program_out = true;
  int64_t now = carrier_now();
  s->until = now + HANDSHAKE_NS;
  s->silent_until = s->mode == BERTHA_CARRY_MAYBE ? now + SILENCE_NS : 0;
  pending++;
  int on = 1;
  setsockopt(tcp, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  const char *why = "no memory";
  s->plan = head->plan_size > 0 ? malloc(head->plan_size) : NULL;
  if (s->plan != NULL) {
    memcpy(s->plan, plan, head->plan_size);
    s->plan_size = head->plan_size;
  }
  const char *not_his;
  bool serves = !s->server || trust_serves(head->listener, shim->uid, &not_his);
  if ((head->plan_size > 0 && s->plan == NULL) || !carrier_watch_tcp(s, false) ||
      !watch(program, s, SESSION_PROGRAM, ring != NULL ? EDGES : EDGES | EPOLLOUT) ||
      (ring != NULL && !rings_open(s, shim, ring->link, ring->slot)) || !serves || !greeting_begin(s, &why)) {
    session_fail(s, serves ? why : not_his);
    return;
  }
  session_run(s);
}

/* A connection came without its descriptors: it alone ends, at both ends, where what we have of it allows. */
static void no_room(struct shim *shim, const struct bertha_carrier_carry *head, bool datagrams,
                    const int *fds, int count) {
  struct session s = {.shim = shim, .status_index = head->status_index};
  if (s.status_index < shim->status_count) {
    s.life = __atomic_load_n(&shim->statuses[s.status_index].life, __ATOMIC_ACQUIRE);
  }
  session_state(&s, BERTHA_CARRIED_REFUSED,
                "the carrier has no descriptors left; raise RLIMIT_NOFILE, or have fewer connections");
  if (count > 0 && !datagrams) {
    session_reset(fds[0]); /* closing would end it as if all had been said */
  }
  carrier_close_all(fds, count);
}

/* One message, which was there before this: what the agent had said before that has been said, or it is behind. */
static void shim_speaks(struct shim *shim) {
  static uint8_t message[sizeof(struct bertha_carrier_carry_ring) + BERTHA_CARRIER_PLAN_MAX + 1];
  int fds[CARRIER_FDS_MAX], count = 0;
  bool cut = false;
  ssize_t n = 0;
  if (control_behind() && control_catch_up()) {
    return; /* the shim is readable still */
  }
  if (!control_behind()) { /* else the rest will not come: it is to ask for another carrier */
    n = carrier_receive(shim->fd, message, sizeof message, fds, &count, &cut);
  }
  if (n < 0) {
    return;
  }
  struct bertha_carrier_carry_ring ring = {.slot = 0};
  struct bertha_carrier_link link;
  uint32_t magic = 0;
  uint16_t kind = 0, version = 0;
  if ((size_t)n >= 8) {
    memcpy(&magic, message, 4);
    memcpy(&version, message + 4, 2);
    memcpy(&kind, message + 6, 2);
  }
  kind = magic == BERTHA_CARRIER_MAGIC && version == BERTHA_CARRIER_VERSION ? kind : 0;
  if (kind == BERTHA_CARRIER_HELLO && count == 1 && shim_hello(shim, message, (size_t)n, fds[0])) {
    carrier_close_all(fds, count);
    return;
  }
  if (kind == BERTHA_CARRIER_LINK && count == 2 && (size_t)n == sizeof link) {
    memcpy(&link, message, sizeof link);
    count = 0;
    if (rings_add(shim, link.number, link.index, fds[0], fds[1], link.spin_us)) {
      return;
    }
  }
  bool by_ring = kind == BERTHA_CARRIER_CARRY_RING;
  size_t size = by_ring ? sizeof ring : sizeof ring.carry;
  bool known = by_ring || kind == BERTHA_CARRIER_CARRY || kind == BERTHA_CARRIER_DATAGRAMS;
  if (known && cut && (size_t)n >= size && shim->statuses != NULL) {
    memcpy(&ring, message, size);
    no_room(shim, &ring.carry, kind == BERTHA_CARRIER_DATAGRAMS, fds, count);
    return;
  }
  if (known && count == 2 && (size_t)n >= size && shim->statuses != NULL) {
    memcpy(&ring, message, size);
    const struct bertha_carrier_carry *head = &ring.carry;
    control_speaks(); /* what the agent had said before it came: another key, that a plan may not run */
    if (head->plan_size == (size_t)n - size && head->mode <= BERTHA_CARRY_MAYBE &&
        (head->mode == BERTHA_CARRY_PLAN) == (head->side == 0)) {
      if (kind == BERTHA_CARRIER_DATAGRAMS) {
        datagrams_carry(shim, head, fds[0], fds[1]);
      } else {
        carry(shim, head, by_ring ? &ring : NULL, message + size, fds[0], fds[1]);
        rings_ring(); /* what it has sent before it was ours is taken */
      }
      return;
    }
  }
  carrier_close_all(fds, count); /* the end, or nonsense: what it has given before goes on */
  carrier_unwatch(shim->fd); /* the agent may not have closed its copy yet, which would keep it in the set */
  close(shim->fd);
  shim->fd = -1;
  drop_shim(shim);
}

/* ---- the loop ------------------------------------------------------------------------------------ */

static void session_event(struct session *s, enum what what, uint32_t events) {
  bool ended = what == SESSION_PROGRAM && (events & EPOLLHUP);
  s->program_gone |= ended;
  if (s->lent && !lend_back(s)) {
    return;
  }
  bool more = (events & (EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
  bool in = more || (events & EPOLLIN) != 0;
  bool out = (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0;
  if (what == SESSION_TCP) {
    s->tcp_more |= more;
    s->tcp_in |= in;
    s->tcp_out |= out;
    s->tcp_error |= (events & EPOLLERR) != 0;
  } else {
    s->program_more |= more;
    s->program_in |= in;
    s->program_out |= out;
    rings_event(s, events);
  }
  carrier_queue(s);
}

/* What may change sessions, but ends none. */
static void happened(enum what what, void *who, uint32_t events) {
  if (what == SESSION_TCP || what == SESSION_PROGRAM) {
    session_event(who, what, events);
  } else if (what == BELL) {
    rings_rung(who);
  } else if (what == DATAGRAMS_UDP || what == DATAGRAMS_PROGRAM) {
    datagrams_event(who, what == DATAGRAMS_UDP, events);
  } else if (what == DATAGRAMS_BESIDE) {
    beside_event(who, events);
  }
}

/* Looks after greetings that take too long.  Milliseconds until the next look, -1: none needed. */
static int tick(void) {
  if (pending == 0) {
    return -1;
  }
  int64_t now = carrier_now();
  unsigned left = 0;
  struct session *next;
  for (struct session *s = sessions; s != NULL; s = next) {
    next = s->next;
    if (s->state != BERTHA_CARRIED_PENDING) {
      continue;
    }
    left++;
    if (s->asked != 0 && !carrier_has_agent()) {
      session_fail(
          s, "the server's agent is gone, and this plan is not known yet; connect again when it is back");
    } else if (now >= s->until && !(s->mode == BERTHA_CARRY_MAYBE && !s->sniffed)) {
      session_fail(s, "no agreement with the other end within 10 s; is it a carrier?");
    } else if (s->silent_until != 0 && now >= s->silent_until && !s->sniffed &&
               (buffer_size(&s->up[0]) < OPENING_SURE || now >= s->until)) {
      s->up_open = true; /* what a carrier begins with is longer, and comes at once */
      session_state(s, BERTHA_CARRIED_PLAIN, "");
      carrier_queue(s);
    }
  }
  pending = left;
  return left > 0 ? 100 : -1;
}

static void say_idle(void) {
  if (session_count == 0 && shims == NULL && carrier_has_agent() && !told_idle) {
    struct buffer message = {0};
    if (pack_map(&message, 1) && pack_text(&message, "op") && pack_text(&message, "idle")) {
      (void)!send(carrier_control(), buffer_data(&message), buffer_size(&message),
                  MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    buffer_free(&message);
    told_idle = true;
  }
}

static void run_ready(void) {
  struct session *end = ready_last; /* those that are queued meanwhile come in the next turn */
  for (struct session *s = ready_first; s != NULL; s = ready_first) {
    bool last = s == end;
    ready_first = s->next_ready;
    if (ready_first == NULL) {
      ready_last = NULL;
    }
    s->queued = false;
    session_run(s);
    if (last) {
      break;
    }
  }
  rings_ring();
}

static bool queued(void) {
  return ready_first != NULL || datagrams_ready();
}

static bool has_work(void) {
  rings_collect();
  return queued();
}

int main(int argc, char **argv) {
  if (argc == 2 && strcmp(argv[1], "--chunnels") == 0) {
    puts("compress encrypt frame reliable"); /* the last one on datagrams */
    return 0;
  }
  if (argc != 3 || strcmp(argv[1], "--control") != 0) {
    fprintf(stderr, "usage: bertha-carrier --control FD   (started by the agent)\n");
    return 2;
  }
  control_begin(atoi(argv[2]));
  struct rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  place_init();
  carrier_drop_privileges();
  mallopt(M_MMAP_THRESHOLD, 16 << 20); /* buffers come and go with each burst */
  mallopt(M_TRIM_THRESHOLD, 64 << 20);
  signal(SIGPIPE, SIG_IGN);
  static _Alignas(16) char control_mark[16];
  poller = epoll_create1(EPOLL_CLOEXEC);
  if (!rings_init() || poller < 0 || !watch(carrier_control(), control_mark, CONTROL, EPOLLIN)) {
    fprintf(stderr, "bertha-carrier: descriptor %s: %s\n", argv[2], strerror(errno));
    return 1;
  }
  while (carrier_has_agent() || session_count > 0 || shims != NULL) {
    struct epoll_event events[EVENTS];
    int wait = tick();
    int next = timers_wait(carrier_now());
    wait = wait < 0 || (next >= 0 && next < wait) ? next : wait;
    int n = has_work() ? 0 : awake_look(poller, events, EVENTS, has_work);
    bool sleeps = n == 0 && !queued() && rings_may_sleep();
    bool warm = sleeps && (wait < 0 || wait > WARM_MS) && warm_any();
    if (n == 0) {
      n = epoll_wait(poller, events, EVENTS, sleeps ? (warm ? WARM_MS : wait) : 0);
    }
    if (sleeps) {
      rings_awake();
    }
    if (warm && n == 0) {
      warm_cool();
    }
    for (int i = 0; i < n; i++) {
      happened((enum what)(events[i].data.u64 & WHAT),
               (void *)(uintptr_t)(events[i].data.u64 & ~(uint64_t)WHAT), events[i].events);
    }
    bool busy = n > 0 || queued();
    run_ready();
    int64_t now = carrier_now();
    timers_run(now);
    datagrams_run();
    if (busy) {
      place_look(now);
    }
    for (int i = 0; i < n;
         i++) { /* they may end sessions and shims, which the others of this turn may mean */
      enum what what = (enum what)(events[i].data.u64 & WHAT);
      if (what == CONTROL) {
        control_speaks();
      } else if (what == SHIM) {
        shim_speaks((struct shim *)(uintptr_t)(events[i].data.u64 & ~(uint64_t)WHAT));
      }
    }
    say_idle();
  }
  return 0;
}
