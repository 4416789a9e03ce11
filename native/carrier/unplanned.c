/* What the agent has said of clients that bring no plan to a listener that prefers chunnels: the connection log's reason. */
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "session.h"

enum { WHY_MAX = 400 };

static struct unplanned { /* `why` is NULL: free */
  uint64_t listener;
  bool anybody; /* of whom nothing else is known */
  uint8_t host[16];
  char *why;
} known[UNPLANNED_MAX];

static struct unplanned *find(uint64_t listener, const uint8_t *host) {
  for (unsigned i = 0; i < UNPLANNED_MAX; i++) {
    struct unplanned *u = &known[i];
    if (u->why != NULL && u->listener == listener && u->anybody == (host == NULL) &&
        (host == NULL || memcmp(u->host, host, sizeof u->host) == 0)) {
      return u;
    }
  }
  return NULL;
}

static struct unplanned *find_free(void) {
  for (unsigned i = 0; i < UNPLANNED_MAX; i++) {
    if (known[i].why == NULL) {
      return &known[i];
    }
  }
  return NULL;
}

void unplanned_learn(const struct pack_value *message) {
  struct pack_value listener, host, why;
  if (!pack_get(message, "listener", &listener) || listener.kind != PACK_INT ||
      !pack_get(message, "host", &host) || host.kind != PACK_BYTES || (host.size != 0 && host.size != 16) ||
      !pack_get(message, "why", &why) || why.kind != PACK_TEXT) {
    return;
  }
  const uint8_t *who = host.size == 16 ? host.data : NULL;
  struct unplanned *u = find(listener.number, who);
  if (u != NULL) {
    free(u->why);
    u->why = NULL;
  }
  char text[WHY_MAX];
  pack_copy(&why, text, sizeof text);
  pack_printable(text);
  u = text[0] != '\0' ? find_free() : NULL;
  if (u != NULL) {
    *u = (struct unplanned){.listener = listener.number, .anybody = who == NULL, .why = strdup(text)};
    if (who != NULL) {
      memcpy(u->host, who, sizeof u->host);
    }
  }
}

static bool peer_of(int tcp, uint8_t host[16]) {
  static const uint8_t v4[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  struct sockaddr_in6 a = {0};
  socklen_t size = sizeof a;
  if (getpeername(tcp, (struct sockaddr *)&a, &size) != 0) {
    return false;
  }
  if (a.sin6_family == AF_INET) {
    const struct sockaddr_in *in = (const void *)&a;
    memcpy(host, v4, sizeof v4);
    memcpy(host + sizeof v4, &in->sin_addr, 4);
  } else {
    memcpy(host, &a.sin6_addr, 16);
  }
  return true;
}

void unplanned_why(uint64_t listener, int tcp, char *to, size_t room) {
  uint8_t host[16];
  const struct unplanned *u = peer_of(tcp, host) ? find(listener, host) : NULL;
  if (u == NULL) {
    u = find(listener, NULL);
  }
  snprintf(to, room, "%s", u != NULL ? u->why : "");
}
