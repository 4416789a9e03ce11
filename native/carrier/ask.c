/* Questions to the agent: may a plan that a client shows run here? */
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

#include "session.h"

/* Who is at the other end, for the agent's log: "address port". */
static void peer_text(int tcp, char *to, size_t room) {
  struct sockaddr_storage a;
  socklen_t size = sizeof a;
  char host[NI_MAXHOST], port[NI_MAXSERV];
  to[0] = '\0';
  if (getpeername(tcp, (struct sockaddr *)&a, &size) == 0 &&
      getnameinfo((struct sockaddr *)&a, size, host, sizeof host, port, sizeof port,
                  NI_NUMERICHOST | NI_NUMERICSERV) == 0) {
    snprintf(to, room, "%s %s", host, port);
  }
}

uint64_t carrier_ask(uint64_t listener, const uint8_t *plan, size_t size, const char *peer) {
  static uint64_t last_question;
  struct buffer message = {0};
  int control = carrier_control();
  bool good = control >= 0 && pack_map(&message, 5) && pack_text(&message, "op") &&
              pack_text(&message, "check") && pack_text(&message, "id") &&
              pack_uint(&message, ++last_question) && pack_text(&message, "listener") &&
              pack_uint(&message, listener) && pack_text(&message, "plan") &&
              pack_bytes(&message, plan, size) && pack_text(&message, "peer") && pack_text(&message, peer);
  /* Where the agent does not read, all the others would wait for it, too. */
  int flags = MSG_NOSIGNAL | MSG_DONTWAIT;
  good = good && send(control, buffer_data(&message), buffer_size(&message), flags) >= 0;
  buffer_free(&message);
  return good ? last_question : 0;
}

/* The sessions that wait for an answer. */
static struct session *asking;

bool carrier_ask_session(struct session *s) {
  for (const struct session *other = asking; other != NULL && s->asked == 0; other = other->next_asking) {
    if (other->listener == s->listener && other->plan_size == s->plan_size &&
        memcmp(other->plan, s->plan, s->plan_size) == 0) {
      s->asked = other->asked; /* many come at once, and the agent reads a few hundred questions */
    }
  }
  if (s->asked == 0) {
    char peer[NI_MAXHOST + NI_MAXSERV + 2];
    peer_text(s->tcp, peer, sizeof peer);
    s->asked = carrier_ask(s->listener, s->plan, s->plan_size, peer);
  }
  if (s->asked != 0) {
    s->next_asking = asking;
    asking = s;
  }
  return s->asked != 0;
}

struct session *carrier_asked(uint64_t number) {
  struct session *s = asking;
  while (s != NULL && s->asked != number) {
    s = s->next_asking;
  }
  return s;
}

void carrier_unanswered(void) {
  for (struct session *s = asking; s != NULL; s = s->next_asking) {
    carrier_queue(s); /* which finds that nobody will answer */
  }
}

void carrier_answered(struct session *s) {
  for (struct session **at = &asking; s->asked != 0 && *at != NULL; at = &(*at)->next_asking) {
    if (*at == s) {
      *at = s->next_asking;
      break;
    }
  }
  s->asked = 0;
}
