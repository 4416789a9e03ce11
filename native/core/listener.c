/* Listeners: sockets of this process that its agent knows of, and those that it has connected to. */
#include <stdlib.h>
#include <sys/mman.h>

#include <linux/netlink.h>
#include <netinet/in.h>

#include "agentc.h"
#include "links.h"

#define AGENTS_PORT 7277

static struct listener *known_listener(uint64_t id) {
  struct listener *l = mapped.listeners;
  while (l != NULL && l->id != id) {
    l = l->next;
  }
  return l;
}

/* Also for a signal handler that has interrupted who holds the lock: nothing changes meanwhile, and the list is whole
 * after each store. */
struct listener *listener_get(uint64_t id) {
  bool locked = bertha_lock(&mapped.lock);
  struct listener *l = known_listener(id);
  if (locked) {
    bertha_unlock(&mapped.lock);
  }
  return l;
}

struct listener *listener_of(const struct conn *c) {
  return c->listener != 0 ? listener_get(c->listener) : NULL;
}

static struct listener *map_claims(int fd) {
  size_t size = sealed_size(fd, sizeof(struct bertha_claims_header) +
                                    BERTHA_CLAIM_BUCKETS * sizeof(struct bertha_claims_bucket));
  struct listener *l = size != 0 ? old_listener(size) : NULL;
  if (size != 0 && l == NULL) {
    l = calloc(1, sizeof *l);
  }
  if (l == NULL) {
    return NULL;
  }
  bool old = l->claims != NULL;
  struct bertha_claims_header *claims = map_over(fd, size, l->claims);
  if (claims == NULL || claims->magic != BERTHA_MAGIC_CLAIM || claims->version != BERTHA_LAYOUT_VERSION ||
      claims->bucket_count != BERTHA_CLAIM_BUCKETS) {
    if (claims != NULL && !old) {
      munmap(claims, size);
    }
    if (!old) { /* else somebody may still look at it */
      free(l);
    }
    return NULL;
  }
  l->claims = claims;
  l->size = size;
  atomic_store(&l->passes_on, false);
  return l;
}

/* Takes the descriptor over.  `serves`: a socket of ours listens, until listener_closed(). */
struct listener *listener_add(uint64_t id, uint64_t generation, int claims_fd, bool serves) {
  struct listener *l = NULL;
  conn_books_begin();
  if (bertha_lock(&mapped.lock)) {
    l = known_listener(id);
    if (l == NULL && (l = map_claims(claims_fd)) != NULL) {
      l->id = id;
      l->serves = false;
      l->pins = 0;
      l->next = mapped.listeners;
      mapped.listeners = l;
    }
    if (l != NULL) {
      l->generation = generation;
      l->pid = bertha.pid;
      l->serves |= serves;
      l->pins += !serves; /* the caller's, until it has a link to show for it */
    }
    bertha_unlock(&mapped.lock);
  }
  conn_books_end();
  QUIET(close)(claims_fd);
  return l;
}

/* The port on which other hosts' agents ask, in our network namespace: taken if the agent lives in this one too, or
 * has come here.  Only
 * for listeners with chunnels.  Of TCP, where they connect, or of UDP, where questions come as datagrams. */
static int agents_port(int type) {
  const char *text = getenv("BERTHA_AGENT_PORT");
  int port = text != NULL && *text != '\0' ? atoi(text) : AGENTS_PORT;
  struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
  int fd = port > 0 && port < 65536 ? REAL(socket)(AF_INET6, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0) : -1;
  int off = 0;
  int on =
      type ==
      SOCK_STREAM; /* connections that an earlier one closed may be in TIME_WAIT; of UDP it would share */
  if (fd >= 0 && (REAL(setsockopt)(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) != 0 ||
                  REAL(setsockopt)(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
                  REAL(bind)(fd, (struct sockaddr *)&any, sizeof any) != 0 ||
                  (type == SOCK_STREAM && REAL(listen)(fd, 16) != 0))) {
    QUIET(close)(fd);
    fd = -1;
  }
  return fd;
}

static uint32_t tell(int *fds, int count, struct bertha_listen_reply *reply, int *claims) {
  struct bertha_listen body = {0};
  uint32_t why =
      agent_call(BERTHA_OP_LISTEN, &body, sizeof body, fds, count, reply, sizeof *reply, claims, 1);
  if (why == 0 && reply->dag != BERTHA_DAG_NONE && count == 3 && (fds[3] = agents_port(SOCK_STREAM)) >= 0) {
    if (*claims >= 0) {
      QUIET(close)(*claims);
    }
    fds[4] = agents_port(SOCK_DGRAM);
    return tell(fds, fds[4] >= 0 ? 5 : 4, reply, claims);
  }
  return why;
}

/* Tells the agent of a listening socket; the agent sees by the socket itself that we own its address. */
struct listener *listener_register(int fd, uint32_t *why) {
  uint64_t generation = directory_generation();
  int fds[5] = {fd, -1, -1, -1, -1};
  fds[1] = REAL(socket)(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  fds[2] = REAL(socket)(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
  struct listener *l = NULL;
  if (fds[1] < 0 || fds[2] < 0) {
    *why = BERTHA_WHY_NO_DESCRIPTOR;
  } else {
    struct bertha_listen_reply reply;
    int claims = -1;
    *why = tell(fds, 3, &reply, &claims);
    if (*why == 0 && claims >= 0) {
      l = listener_add(reply.listener, generation != 0 ? generation : directory_generation(), claims, true);
      *why = l != NULL ? 0 : BERTHA_WHY_NO_MEMORY;
    }
  }
  for (int i = 1; i < 5; i++) {
    if (fds[i] >= 0) {
      QUIET(close)(fds[i]);
    }
  }
  return l;
}
