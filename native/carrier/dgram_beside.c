/* Chunnels that are not in C run in a carrier in Python beside this one, which keeps the UDP socket and the program: what
 * is not of an exchange here goes there.  So the carrier of a socket need not be right for all that it will ever speak
 * with, and nothing of what runs here is lost when one comes for whom it is not (decision 0022). */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "datagrams.h"

enum { ROUNDS = 64, ROOM = BERTHA_DGRAM_MAX + 2048, BESIDE_BYTES = 100 * 1024 };
#define WANTED_NS (10 * SECOND_NS) /* a HELLO is said again for so long */

static void head_of(struct bertha_dgram *head, uint16_t kind, const struct place *of, uint64_t value) {
  *head = (struct bertha_dgram){
      .magic = BERTHA_DGRAM_MAGIC, .kind = kind, .port = of->port, .scope = of->scope, .value = value};
  memcpy(head->addr, of->addr, sizeof head->addr);
}

/* False: it has to take others first. */
static bool given(struct datagrams *d, const void *head, size_t head_size, const void *data, size_t size) {
  struct iovec parts[2] = {{(void *)(uintptr_t)head, head_size}, {(void *)(uintptr_t)data, size}};
  struct msghdr msg = {.msg_iov = parts, .msg_iovlen = size > 0 ? 2 : 1};
  return sendmsg(d->beside, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 || (errno != EAGAIN && errno != EINTR);
}

static bool give(struct datagrams *d, uint16_t kind, const struct place *of, uint64_t value,
                 const uint8_t *data, size_t size) {
  struct bertha_dgram head;
  head_of(&head, kind, of, value);
  if (d->beside >= 0 && d->to_beside.first == NULL && d->beside_out) {
    d->beside_out = given(d, &head, sizeof head, data, size);
    if (d->beside_out) {
      return true;
    }
  }
  /* Neither takes the other's room: the program sends no faster than is taken (BESIDE_MAX), the network may. */
  bool network = kind == BERTHA_DGRAM_NETWORK;
  unsigned most = d->beside >= 0 ? 2 * QUEUE_MAX : EARLY_MAX;
  if ((network && d->to_beside.count - d->beside_own >= most) ||
      !queue_add(&d->to_beside, of, (const uint8_t *)&head, sizeof head, data, size)) {
    return false;
  }
  d->beside_own += !network;
  return true;
}

static void drop_first(struct datagrams *d) {
  struct bertha_dgram head;
  memcpy(&head, d->to_beside.first->bytes, sizeof head);
  d->beside_own -= head.kind != BERTHA_DGRAM_NETWORK;
  queue_drop_first(&d->to_beside);
}

static void flush(struct datagrams *d) {
  while (d->beside >= 0 && d->beside_out && d->to_beside.first != NULL) {
    const struct packet *p = d->to_beside.first;
    d->beside_out = given(d, p->bytes, p->size, NULL, 0);
    if (d->beside_out) {
      drop_first(d);
    }
  }
}

static bool there(const struct datagrams *d) {
  return d->beside >= 0 || (d->beside_until != 0 && carrier_now() < d->beside_until);
}

bool beside_network(struct datagrams *d, const struct place *from, const uint8_t *data, size_t size,
                    bool want) {
  static const struct place nowhere;
  if (!there(d)) {
    if (!want || !datagrams_give(d, BERTHA_DGRAM_BESIDE, &nowhere, 0, NULL, 0, false)) {
      return false;
    }
    queue_clear(&d->to_beside); /* of one that did not come */
    d->beside_own = 0;
    d->beside_until = carrier_now() + WANTED_NS;
  }
  if (!give(d, BERTHA_DGRAM_NETWORK, from, 0, data, size)) {
    d->lost++;
    dgram_tell_soon(d);
  }
  return true;
}

bool beside_program(struct datagrams *d, uint16_t kind, const struct place *to, uint64_t value,
                    const uint8_t *data, size_t size) {
  if (d->beside < 0) {
    return false;
  }
  if (!give(d, kind, to, value, data, size)) {
    d->lost++;
    dgram_tell_soon(d);
  }
  return true;
}

void beside_closed(struct datagrams *d) {
  static const struct place nowhere;
  give(d, BERTHA_DGRAM_CLOSED, &nowhere, 0, NULL, 0);
}

void beside_begin(struct datagrams *d, int fd) {
  if (d->beside >= 0 || !carrier_watch_beside(d, fd)) {
    close(fd);
    return;
  }
  /* What lies between us and its word that it wants no more must not be more than it has room for. */
  int room = BESIDE_BYTES;
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
  d->beside = fd;
  d->beside_in = d->beside_out = true;
  d->beside_until = 0;
  flush(d);
}

void beside_end(struct datagrams *d) {
  if (d->beside >= 0) {
    carrier_unwatch(d->beside);
    close(d->beside);
    d->beside = -1;
    d->beside_full = false;
  }
  queue_clear(&d->to_beside);
  d->beside_own = 0;
}

void beside_event(struct datagrams *d, uint32_t events) {
  d->beside_in |= (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
  d->beside_out |= (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0;
  datagrams_queue(d);
}

/* From an address that speaks by the chunnels there: it is answered there. */
static void answered_there(struct datagrams *d, const struct place *place) {
  struct peer *p = peers_find(d, place);
  if (p != NULL && p->current != NULL && p->plan == NULL) {
    peers_current(d, p, NULL);
  }
}

static void said(struct datagrams *d, const uint8_t *data, size_t size) {
  struct bertha_dgram head;
  if (size < sizeof head) {
    return;
  }
  memcpy(&head, data, sizeof head);
  data += sizeof head;
  size -= sizeof head;
  struct place place = {.scope = head.scope, .port = head.port};
  memcpy(place.addr, head.addr, sizeof place.addr);
  if (head.magic != BERTHA_DGRAM_MAGIC) {
    return;
  }
  switch (head.kind) {
  case BERTHA_DGRAM_DATA:
    answered_there(d, &place);
    if (!datagrams_give(d, head.kind, &place, 0, data, size, false)) {
      d->lost++;
    }
    break;
  case BERTHA_DGRAM_ERROR:
  case BERTHA_DGRAM_REFUSED:
    datagrams_give(d, head.kind, &place, head.value, NULL, 0, false);
    break;
  case BERTHA_DGRAM_FULL:
    d->beside_full = head.value != 0;
    break;
  case BERTHA_DGRAM_STATUS: {
    const uint8_t *end = memchr(data, '\0', size);
    if (end != NULL) {
      size_t n = (size_t)(end - data);
      dgram_text(d, (const char *)data, head.value == BERTHA_CARRIED_READY ? n : 0, (const char *)end + 1,
                 size - n - 1);
      d->passed |= head.value == BERTHA_CARRIED_PLAIN;
      dgram_tell(d);
    }
    break;
  }
  default:
    break;
  }
}

/* The program is to have what has come before it gets more. */
static bool reads(const struct datagrams *d) {
  return d->beside >= 0 && d->beside_in && !d->over && !datagrams_full(d);
}

bool beside_has_more(const struct datagrams *d) {
  return reads(d);
}

void beside_run(struct datagrams *d) {
  static uint8_t data[ROOM];
  flush(d);
  for (int i = 0; i < ROUNDS && reads(d); i++) {
    ssize_t n = recv(d->beside, data, sizeof data, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNRESET)) { /* as in receive.c */
      d->beside_in = errno != EAGAIN;
    } else if (n > 0) {
      said(d, data, (size_t)n);
    } else if (d->until != 0 ||
               d->server) { /* clients are told that their sessions are gone, and begin anew */
      beside_end(d);
    } else { /* nobody knows its plans any more: as if we had died with it, the program gets others, and tells them */
      d->over = true;
    }
  }
}
