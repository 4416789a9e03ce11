#include "connlog.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>

#include "../carrier/carrier.h"
#include "abroad.h"
#include "agentc.h"
#include "carried.h"
#include "conn.h"
#include "local.h"
#include "reason.h"

uint64_t connlog_clock(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* To a few milliseconds, which the counter need not be read for. */
uint64_t connlog_about(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME_COARSE, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void address_text(char *to, size_t size, const uint8_t addr[16], uint16_t port) {
  static const uint8_t v4[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  char text[INET6_ADDRSTRLEN];
  if (memcmp(addr, v4, 12) == 0) {
    inet_ntop(AF_INET, addr + 12, text, sizeof text);
    snprintf(to, size, "%s:%u", text, port);
  } else {
    inet_ntop(AF_INET6, addr, text, sizeof text);
    snprintf(to, size, "[%s]:%u", text, port);
  }
}

void connlog_addresses(struct conn *c, int fd) {
  struct sockaddr_storage a;
  socklen_t size = sizeof a;
  if (c->info.local_port == 0 && REAL(getsockname)(fd, (struct sockaddr *)&a, &size) == 0) {
    address_of((struct sockaddr *)&a, c->info.local_addr, &c->info.local_port);
  }
  size = sizeof a;
  if (c->info.peer_port == 0 && REAL(getpeername)(fd, (struct sockaddr *)&a, &size) == 0) {
    address_of((struct sockaddr *)&a, c->info.peer_addr, &c->info.peer_port);
  }
}

/* JSON's escapes (RFC 8259, 7) for a program's name. */
static void escape(char *to, size_t size, const char *from) {
  size_t n = 0;
  for (; *from != '\0' && n + 7 < size; from++) {
    unsigned char ch = (unsigned char)*from;
    if (ch == '"' || ch == '\\') {
      to[n++] = '\\';
      to[n++] = (char)ch;
    } else if (ch < 0x20 || ch >= 0x7f) {
      n += (size_t)snprintf(to + n, 7, "\\u%04x", ch);
    } else {
      to[n++] = (char)ch;
    }
  }
  to[n] = '\0';
}

/* What goes into one line, besides the connection's own record. */
struct line {
  const struct conn *c;
  int pid;
  bool plain;
  bool killed;
  char chunnels[800]; /* JSON */
  char reason[600];   /* empty: null */
};

static void write_line(const struct line *l) {
  const struct conn *c = l->c;
  char program[200], local[64], peer[64], reason[1300] = "null";
  escape(program, sizeof program, bertha.name[0] != '\0' ? bertha.name : bertha.program);
  address_text(local, sizeof local, c->info.local_addr, c->info.local_port);
  address_text(peer, sizeof peer, c->info.peer_addr, c->info.peer_port);
  if (l->reason[0] != '\0') {
    reason[0] = '"';
    escape(reason + 1, sizeof reason - 2, l->reason);
    strcat(reason, "\"");
  }
  bool carried = BERTHA_CARRIED_BY(c->info.carried) != 0;
  const char *hop = !carried                          ? ""
                    : conn_kind(c) == BERTHA_CONN_SHM ? ",\"carrier\":\"ring\""
                                                      : ",\"carrier\":\"socketpair\"";
  static const char *const kinds[] = {"native", "python", "authors"}; /* BERTHA_CARRIER_* */
  char kind[60] = "";
  if (carried && c->carrier < sizeof kinds / sizeof *kinds) {
    snprintf(kind, sizeof kind, ",\"carried_by\":\"%s\"", kinds[c->carrier]);
    uint32_t beside = BERTHA_CARRIED_BESIDE(c->info.carried);
    if (beside > 0 && beside < sizeof kinds / sizeof *kinds) {
      snprintf(kind, sizeof kind, ",\"carried_by\":\"%s\",\"beside\":\"%s\"", kinds[c->carrier],
               kinds[beside]);
    }
  }
  char spin[32] = ""; /* the link of one that was killed may be nowhere in this process */
  const struct link *link = conn_kind(c) == BERTHA_CONN_SHM && !l->killed ? c->link : NULL;
  if (link != NULL && !link->apart && link->plan.spin_us != UINT32_MAX) {
    snprintf(spin, sizeof spin, ",\"spin_us\":%u", link->plan.spin_us);
  }
  char inside[48] = "";
  bool lent = link != NULL && carried && atomic_load(&c->slot->loan_wanted) != BERTHA_LOAN_NEVER;
  const struct bertha_loan *loan = lent ? link_loan(link, c->slot_index) : NULL;
  uint64_t bytes = loan != NULL ? atomic_load_explicit(&loan->bytes, memory_order_relaxed) : 0;
  if (bytes != 0) {
    snprintf(inside, sizeof inside, ",\"in_program\":%llu", (unsigned long long)bytes);
  }
  uint64_t now = connlog_clock();
  char line[3200];
  int n = snprintf(line, sizeof line,
                   "{\"time\":%llu.%06u,\"pid\":%d,\"program\":\"%s\",\"role\":\"%s\",\"proto\":\"%s\","
                   "\"local\":\"%s\",\"peer\":\"%s\",\"chunnels\":%s,\"plain\":%s,\"reason\":%s,"
                   "\"tx_bytes\":%llu,\"rx_bytes\":%llu,\"setup_us\":%u%s%s%s%s%s}\n",
                   (unsigned long long)(now / 1000000000u), (unsigned)(now % 1000000000u / 1000u),
                   l->pid != 0 ? l->pid : bertha.pid, program,
                   c->info.role == BERTHA_SIDE_CLIENT ? "client" : "server",
                   c->info.family & BERTHA_FAMILY_DATAGRAMS ? "udp" : "tcp", local, peer, l->chunnels,
                   l->plain ? "true" : "false", reason, (unsigned long long)c->info.tx_bytes,
                   (unsigned long long)c->info.rx_bytes, c->info.setup_us, hop, kind, spin, inside,
                   l->killed ? ",\"killed\":true" : "");
  if (n > 0 && (size_t)n < sizeof line) {
    connlog_put(line, (size_t)n);
  }
}

static const char bottom_of_streams[] =
    "{\"type\":\"local_or_remote\",\"implementation\":\"tcp\",\"where\":\"global\"}";
static const char bottom_of_datagrams[] =
    "{\"type\":\"local_or_remote\",\"implementation\":\"udp\",\"where\":\"global\"}";

/* Behind what it says already, if that is something. */
static void add_reason(struct line *l, const char *more, const char *between) {
  size_t n = strlen(l->reason);
  if (more[0] != '\0') {
    snprintf(l->reason + n, sizeof l->reason - n, "%s%s", n > 0 ? between : "", more);
  }
}

/* A carrier has told what runs, or why nothing does; its texts are checked, for it shares its memory with us. */
static void carried_line(struct line *l, const struct bertha_carrier_status *s) {
  uint32_t state = s != NULL ? __atomic_load_n(&s->state, __ATOMIC_ACQUIRE) : BERTHA_CARRIED_PENDING;
  char upper[sizeof s->chunnels];
  char detail[sizeof s->detail];
  memcpy(upper, s != NULL ? s->chunnels : "", s != NULL ? sizeof upper : 1);
  memcpy(detail, s != NULL ? s->detail : "", s != NULL ? sizeof detail : 1);
  upper[sizeof upper - 1] = detail[sizeof detail - 1] = '\0';
  size_t n = strlen(upper);
  const char *bottom = l->c->info.family & BERTHA_FAMILY_DATAGRAMS ? bottom_of_datagrams : bottom_of_streams;
  bool running =
      state == BERTHA_CARRIED_READY || state == BERTHA_CARRIED_RESET || state == BERTHA_CARRIED_RAISED;
  if (running && n > 2 && upper[0] == '[' && upper[n - 1] == ']') {
    upper[n - 1] = '\0';
    snprintf(l->chunnels, sizeof l->chunnels, "%s,%s]", upper, bottom);
  } else {
    snprintf(l->chunnels, sizeof l->chunnels, "[%s]", bottom);
  }
  l->plain = state == BERTHA_CARRIED_PLAIN;
  const char *why = NULL;
  if (state == BERTHA_CARRIED_REFUSED) {
    why = bertha_reason_text(BERTHA_WHY_CHUNNEL_REFUSED);
  } else if (state == BERTHA_CARRIED_RESET) {
    why = bertha_reason_text(BERTHA_WHY_CHUNNEL_FAILED);
  } else if (state == BERTHA_CARRIED_RAISED) {
    why = bertha_reason_text(BERTHA_WHY_CHUNNEL_RAISED);
  } else if (state == BERTHA_CARRIED_PLAIN) {
    why = bertha_reason_text(BERTHA_WHY_PEER_UNAWARE);
  }
  if (state == BERTHA_CARRIED_PENDING && l->c->info.reason == 0) {
    why = bertha_reason_text(BERTHA_WHY_NEVER_CONNECTED);
  }
  if (why == NULL && l->c->info.reason != 0) {
    why = bertha_reason_text(l->c->info.reason);
  }
  /* Of one that runs, the detail is about something else: what was left out, and of datagrams what was dropped. */
  const char *between = state == BERTHA_CARRIED_READY || state == BERTHA_CARRIED_PLAIN ? "; " : ": ";
  if (why != NULL || (l->c->info.family & BERTHA_FAMILY_DATAGRAMS)) {
    l->reason[0] = '\0';
  }
  add_reason(l, why != NULL ? why : "", "");
  if (why != NULL || state == BERTHA_CARRIED_READY || (l->c->info.family & BERTHA_FAMILY_DATAGRAMS)) {
    add_reason(l, detail, between);
  }
}

/* The program runs chunnels itself, on top of whatever carries the connection. */
static void named_line(struct line *l, const struct bertha_carrier_status *s) {
  char below[sizeof l->chunnels];
  size_t n = s != NULL ? strlen(s->chunnels) : 0;
  if (n > 2 && s->chunnels[n - 1] == ']') {
    memcpy(below, l->chunnels, sizeof below);
    snprintf(l->chunnels, sizeof l->chunnels, "%.*s,%.120s", (int)(n - 1), s->chunnels, below + 1);
    l->plain = false;
    l->reason[0] = '\0';
  }
  if (s != NULL) {
    add_reason(l, s->detail, "; ");
  }
}

void connlog_refused(struct conn *c, int fd, const char *detail) {
  if (bertha.connlog[0] == '\0') {
    return;
  }
  int saved = errno;
  connlog_addresses(c, fd);
  struct line l = {.c = c};
  snprintf(l.chunnels, sizeof l.chunnels, "[]");
  snprintf(l.reason, sizeof l.reason, "%s: %s", bertha_reason_text(BERTHA_WHY_CHUNNEL_REFUSED), detail);
  write_line(&l);
  errno = saved;
}

static void bottom(struct line *l, uint32_t kind) {
  bool local = conn_flags(l->c) & CONN_LOCAL;
  bool shm = kind == BERTHA_CONN_SHM || (l->c->info.carried & BERTHA_CARRIED_BOXED);
  const char *implementation = shm ? "shm" : kind == BERTHA_CONN_UNIX ? "unix" : local ? "udp" : "tcp";
  l->plain = !shm && kind != BERTHA_CONN_UNIX;
  snprintf(l->chunnels, sizeof l->chunnels,
           "[{\"type\":\"local_or_remote\",\"implementation\":\"%s\",\"where\":\"%s\"}]", implementation,
           l->plain ? "global" : "host");
}

void connlog_killed(struct conn *c, int pid) {
  uint32_t kind = conn_kind(c);
  if (bertha.connlog[0] == '\0' || kind < BERTHA_CONN_PLAIN || (conn_flags(c) & (CONN_LOGGED | CONN_NAMED))) {
    return;
  }
  int saved = errno;
  struct line l = {.c = c, .pid = pid, .killed = true};
  bottom(&l, kind);
  if (c->info.reason != 0) {
    snprintf(l.reason, sizeof l.reason, "%s", bertha_reason_text(c->info.reason));
  }
  if (conn_flags(c) & CONN_CARRIED) {
    carried_line(&l, carried_status(c));
  }
  write_line(&l);
  errno = saved;
}

/* Why no carrier has it.  What a client goes without is told of one that is not plain as well, and at the server's end. */
static void add_why_not(struct line *l, uint32_t kind, uint32_t why) {
  static const char left_out[] = "left out: "; /* negotiation/plan.py */
  char text[BERTHA_LEFT_OUT_SIZE];
  bool tied = (kind == BERTHA_CONN_SHM || kind == BERTHA_CONN_UNIX) && !(conn_flags(l->c) & CONN_CARRIED);
  if (l->c->info.role == BERTHA_SIDE_SERVER) {
    if (tied && link_left_out(l->c->link, text, sizeof text)) {
      add_reason(l, text, "; ");
    }
    return;
  }
  carried_why_not(l->c, text, sizeof text);
  if (strstr(text, left_out) == text) {
    add_reason(l, text, "; ");
  } else if (l->plain && why != 0) {
    add_reason(l, text, "; chunnels: ");
  }
}

void connlog_write(struct conn *c, int fd) {
  conn_ripe(c, fd); /* a client that only wrote may not have looked since the server came */
  uint32_t kind = conn_kind(c);
  if (bertha.connlog[0] == '\0' || kind < BERTHA_CONN_PLAIN || (conn_flags(c) & CONN_LOGGED)) {
    return;
  }
  conn_set_flag(c, CONN_LOGGED);
  int saved = errno;
  uint32_t why = c->info.carried & BERTHA_CARRIED_BOXED ? BERTHA_WHY_NONE : c->info.reason;
  if (kind == BERTHA_CONN_CLAIMED) {
    why = conn_flags(c) & CONN_BROKEN ? BERTHA_WHY_CORRUPT : BERTHA_WHY_NOT_ATTACHED;
  } else if (kind == BERTHA_CONN_MAYBE) {
    why = conn_untied_reason(c);
  }
  connlog_addresses(c, fd);
  struct line l = {.c = c};
  bottom(&l, kind);
  if (why != 0) {
    snprintf(l.reason, sizeof l.reason, "%s", bertha_reason_text(why));
  }
  add_why_not(&l, kind, why);
  if (conn_flags(c) & CONN_CARRIED) {
    carried_line(&l, carried_status(c));
  } else if (conn_flags(c) & CONN_NAMED) {
    named_line(&l, carried_status(c));
  }
  write_line(&l);
  errno = saved;
}

/* At exit the kernel closes what the program left open; who was the last to have it says so. */
void connlog_close_all(void) {
  if (!bertha.enabled || !bertha.table_ready || bertha_in_forked_stranger()) {
    return;
  }
  static _Atomic int once;
  if (atomic_exchange(&once, 1)) {
    return;
  }
  for (uint32_t fd = 0; fd < bertha.max_fd; fd++) {
    struct conn *c = conn_of((int)fd);
    if (c == NULL) {
      continue;
    }
    if (UNLIKELY(conn_flags(c) & CONN_LOCAL) && atomic_load(&c->info.refs) != 1) {
      local_forgotten(c, (int)fd, true);
    }
    conn_forget((int)fd);
    if (atomic_fetch_sub(&c->info.refs, 1) == 1 && abroad_give_up(c)) {
      connlog_write(c, (int)fd);
      conn_last_close(c, (int)fd);
      if (conn_kind(c) ==
          BERTHA_CONN_SHM) { /* a FIN that comes before the end is seen has to be the kernel's */
        QUIET(close)((int)fd);
      }
      conn_after_close(c);
    }
  }
  connlog_put(NULL, 0);
}
