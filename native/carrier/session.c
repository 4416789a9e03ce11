#include "session.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PIECE = 64 * 1024, TURNS = 16 };

static struct bertha_carrier_status *status_of(const struct session *s) {
  struct bertha_carrier_status *status =
      s->status_index < s->shim->status_count ? &s->shim->statuses[s->status_index] : NULL;
  bool ours = status != NULL && __atomic_load_n(&status->life, __ATOMIC_ACQUIRE) == s->life;
  return ours ? status : NULL; /* else it is another connection's by now */
}

void session_state(struct session *s, uint32_t state, const char *why) {
  if (s->state == BERTHA_CARRIED_REFUSED || s->state == BERTHA_CARRIED_RESET) {
    return;
  }
  s->state = state;
  struct bertha_carrier_status *to = status_of(s);
  if (to == NULL) {
    return;
  }
  char left_out[sizeof to->detail] = "";
  if (state == BERTHA_CARRIED_READY || state == BERTHA_CARRIED_RESET) {
    plan_left_out(s->plan, s->plan_size, left_out, sizeof left_out);
  } else if (state == BERTHA_CARRIED_PLAIN && s->server) {
    unplanned_why(s->listener, s->tcp, left_out, sizeof left_out);
  }
  if (state == BERTHA_CARRIED_READY) {
    plan_text(s->plan, s->plan_size, s->server, to->chunnels, sizeof to->chunnels);
  }
  snprintf(to->detail, sizeof to->detail, "%s%s%s", why, why[0] != '\0' && left_out[0] != '\0' ? "; " : "",
           left_out);
  __atomic_store_n(&to->state, state, __ATOMIC_RELEASE);
}

void session_ended(struct session *s) {
  struct bertha_carrier_status *to = status_of(s);
  if (to != NULL) {
    __atomic_store_n(&to->ended, 1, __ATOMIC_RELEASE);
  }
}

bool session_push(struct session *s, const char *type, const char *wire, const struct pack_value *args,
                  const char **why) {
  *why = "the plan has more chunnels than a carrier takes";
  struct chunnel *c =
      s->stages < STAGES_MAX ? stage_open(type, wire, args, s->server, s->secrets, why) : NULL;
  if (c != NULL) {
    s->stage[s->stages++] = c;
  }
  return c != NULL;
}

void session_free(struct session *s) {
  carrier_forget(s);
  warm_forget(s);
  for (unsigned i = 0; i < s->stages; i++) {
    s->stage[i]->ops->close(s->stage[i]);
  }
  for (unsigned i = 0; i <= STAGES_MAX; i++) {
    buffer_free(&s->down[i]);
    buffer_free(&s->up[i]);
  }
  close(s->tcp);
  if (s->program >= 0) {
    close(s->program);
  }
  free(s->plan);
  free(s);
}

/* The program keeps a duplicate of the TCP socket, so closing ours would send nothing. */
void session_reset(int tcp) {
  struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
  (void)!connect(tcp, &nowhere, sizeof nowhere);
}

/* Until now, whoever closed the socket last would have reset the connection (core/guard.c). */
void session_end(int tcp) {
  struct linger none = {.l_onoff = 0};
  setsockopt(tcp, SOL_SOCKET, SO_LINGER, &none, sizeof none);
  shutdown(tcp, SHUT_WR);
}

static void reset(struct session *s) {
  session_reset(s->tcp);
  session_free(s);
}

void session_fail(struct session *s, const char *why) {
  bool began = s->state == BERTHA_CARRIED_READY || s->state == BERTHA_CARRIED_PLAIN;
  session_state(s, began ? BERTHA_CARRIED_RESET : BERTHA_CARRIED_REFUSED, why);
  size_t n = buffer_size(&s->down[0]);
  if (!began && n > 0) { /* a TLS alert tells the other end more than a reset */
    (void)!send(s->tcp, buffer_data(&s->down[0]), n, MSG_NOSIGNAL | MSG_DONTWAIT);
    session_end(s->tcp);
    session_free(s);
    return;
  }
  reset(s);
}

static bool move_up(struct session *s, const char **why) {
  for (unsigned i = 0; i < s->stages && s->sniffed && (i != s->base || s->up_open); i++) {
    struct chunnel *c = s->stage[i];
    *why = c->why;
    if (!c->up_done && !c->ops->up(c, &s->up[i], &s->up[i + 1], &s->down[i], s->up_end[i])) {
      return false;
    }
    s->up_end[i + 1] |= c->up_done;
  }
  return true;
}

/* Moves what can be moved within the session.  False: failed. */
static bool move(struct session *s, const char **why) {
  if (!s->sniffed && !greeting_sniff(s, why)) {
    return false;
  }
  if (!s->sniffed && s->up_end[0] &&
      s->state == BERTHA_CARRIED_PENDING) { /* as who looks for open ports does */
    *why = "the client closed the connection before it said anything";
    if (s->mode != BERTHA_CARRY_MAYBE) {
      return false;
    }
    s->sniffed = s->up_open = true;
    session_state(s, BERTHA_CARRIED_PLAIN, "");
  }
  for (unsigned i = s->stages; i-- > 0;) {
    struct chunnel *c = s->stage[i];
    *why = c->why;
    if (!c->down_done && !c->ops->down(c, &s->down[i + 1], &s->down[i], s->down_end[i + 1])) {
      return false;
    }
    s->down_end[i] |= c->down_done;
  }
  if (!move_up(s, why)) {
    return false;
  }
  if (s->sniffed && !s->up_open && !s->parting) {
    if (!greeting_read(s, why)) {
      return false;
    }
    if (!s->up_open && !s->parting && s->up_end[s->base] && s->asked == 0) {
      *why = "the other end closed the connection before both had agreed on the plan";
      return false;
    }
    return !s->up_open || move_up(s, why); /* what came behind the preamble */
  }
  return true;
}

static bool may_read_program(const struct session *s) {
  bool open = s->state == BERTHA_CARRIED_READY || s->state == BERTHA_CARRIED_PLAIN || !s->server;
  return open && s->program_in && !s->down_end[s->stages] && !s->parting && !s->aborted &&
         buffer_size(&s->down[s->stages]) < PIECE && buffer_size(&s->down[0]) < CHUNNEL_ENOUGH;
}

/* Behind the other end's FIN nothing is read any more, and only so a reset is seen. */
static int reset_behind_the_end(const struct session *s) {
  int error = 0;
  socklen_t size = sizeof error;
  if (!s->tcp_error || !s->up_end[0] || getsockopt(s->tcp, SOL_SOCKET, SO_ERROR, &error, &size) != 0) {
    return 0;
  }
  return error;
}

static bool may_read_tcp(const struct session *s) {
  return s->tcp_in && !s->up_end[0] && !s->parting && s->asked == 0 && buffer_size(&s->up[0]) < 4 * PIECE &&
         buffer_size(&s->up[s->stages]) < CHUNNEL_ENOUGH;
}

/* One read; false: nothing came, and we shall be told when something does.  `*error`: the connection is dead. */
static bool take(struct session *s, bool program, struct buffer *to, bool *end, int *error) {
  bool *in = program ? &s->program_in : &s->tcp_in;
  bool more = program ? s->program_more : s->tcp_more;
  uint8_t *at = buffer_reserve(to, PIECE);
  if (at == NULL) {
    *error = ENOMEM;
    return false;
  }
  ssize_t n = program ? program_recv(s, at, PIECE) : recv(s->tcp, at, PIECE, MSG_DONTWAIT);
  if (n > 0) {
    buffer_added(to, (size_t)n);
    *in = more || n == PIECE; /* less: there is no more, and an edge tells when there is (epoll(7)) */
    return true;
  }
  if (n == 0) {
    *end = true;
    *in = false;
    return true;
  }
  if (errno == EAGAIN) {
    *in = false;
  } else if (errno != EINTR) {
    *error = errno;
  }
  return false;
}

static bool give(struct session *s, bool program, struct buffer *from, int *error) {
  bool *out = program ? &s->program_out : &s->tcp_out;
  bool moved = false;
  while (buffer_size(from) > 0 && *out) {
    ssize_t n = program ? program_send(s, buffer_data(from), buffer_size(from))
                        : send(s->tcp, buffer_data(from), buffer_size(from), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) {
      buffer_take(from, (size_t)n);
      moved = true;
    } else if (errno == EAGAIN) {
      *out = false;
    } else if (errno != EINTR) {
      *error = errno;
      break;
    }
  }
  return moved;
}

/* The program reads no more: what still comes for it has nowhere to go, as with a closed TCP socket. */
static bool program_left(struct session *s, int error) {
  if (error == 0) {
    return false;
  }
  s->program_gone = true;
  return true;
}

static bool over(const struct session *s) {
  return s->tcp_shut && (s->program_shut || s->program_gone);
}

/* One turn; true: something was done. */
static bool turn(struct session *s, int *tcp_error, const char **why, bool *failed) {
  bool busy = false;
  int program_error = 0;
  if (may_read_program(s)) {
    busy |= take(s, true, &s->down[s->stages], &s->down_end[s->stages], &program_error);
    if (program_error !=
        0) {             /* ECONNRESET: closed with bytes unread, at which TCP resets (RFC 1122, 4.2.2.13) */
      s->aborted = true; /* without an end: that would be an orderly one */
      program_left(s, program_error);
      busy = true;
    }
  }
  if (may_read_tcp(s)) {
    busy |= take(s, false, &s->up[0], &s->up_end[0], tcp_error);
  }
  if (*tcp_error == 0) {
    *tcp_error = reset_behind_the_end(s);
  }
  if (!move(s, why)) {
    *failed = true;
    return false;
  }
  busy |= give(s, false, &s->down[0], tcp_error);
  if (s->up_open && !s->program_gone) {
    program_error = 0;
    busy |= give(s, true, &s->up[s->stages], &program_error);
    busy |= program_left(s, program_error);
  }
  if (s->down_end[0] && buffer_size(&s->down[0]) == 0 && !s->tcp_shut) {
    session_end(s->tcp);
    s->tcp_shut = busy = true;
  }
  if (s->up_open && s->up_end[s->stages] && buffer_size(&s->up[s->stages]) == 0 && !s->program_shut &&
      !s->program_gone) {
    program_end(s);
    s->program_shut = busy = true;
  }
  return busy;
}

void session_run(struct session *s) {
  bool busy = true;
  if (s->lent && !lend_back(s)) {
    return;
  }
  if (s->lent_why != NULL || s->lent_error != 0) {
    session_fail(s, s->lent_why != NULL ? s->lent_why : strerror(s->lent_error));
    return;
  }
  for (int i = 0; busy && i < TURNS; i++) {
    int tcp_error = 0;
    const char *why = "";
    bool failed = false;
    busy = turn(s, &tcp_error, &why, &failed);
    if (failed) {
      char text[400];
      snprintf(text, sizeof text, "%s", why);
      session_fail(s, text);
      return;
    }
    if (tcp_error != 0) {
      session_fail(s, strerror(tcp_error));
      return;
    }
    if (s->parting && buffer_size(&s->down[0]) == 0 && s->down_end[0]) {
      session_end(s->tcp);
      session_free(s);
      return;
    }
    if (s->aborted && buffer_size(&s->down[0]) == 0 && buffer_size(&s->down[s->stages]) == 0) {
      reset(s);
      return;
    }
    /* The program has closed both directions, or reads no more, and what it sent is on its way. */
    if (over(s) || (s->program_gone && s->tcp_shut)) {
      session_free(s);
      return;
    }
    if (s->program_gone && (buffer_size(&s->up[s->stages]) > 0 || buffer_size(&s->up[0]) > 0) &&
        s->down_end[0] && buffer_size(&s->down[0]) == 0) {
      reset(s);
      return;
    }
  }
  if (busy) {
    carrier_queue(s);
    return;
  }
  warm_add(s);
  lend_offer(s);
}
