/* The two sockets of a carried UDP socket: the program's side is a pair of datagrams, each behind a header that names the
 * other end (struct bertha_dgram of carrier.h). */
#include "datagrams.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef UDP_GRO /* netinet/udp.h of glibc 2.28 */
#define UDP_GRO 104
#endif

enum {
  ROUNDS = 64,        /* datagrams that are read before others have their turn */
  BIGGEST = 65536,    /* bytes of a datagram */
  PLAN_ROOM = 8192,   /* a plan's message may be longer */
  MUCH = 4,           /* times what waits for the program at most */
  CONTROL_ROOM = 512, /* whatever else the program has asked for comes as well, some of it before UDP_GRO's */
};
/* For which what is still unsaid is said after the program has closed. */
#define LINGER_CLIENT_NS (10 * SECOND_NS)
#define LINGER_SERVER_NS (1 * SECOND_NS)
#define AGENT_NS (1 * SECOND_NS)

static const uint8_t v4_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
static struct datagrams *all;
static struct datagrams *ready_first, *ready_last;

struct datagrams *datagrams_first(void) {
  return all;
}

bool datagrams_ready(void) {
  return ready_first != NULL;
}

void datagrams_queue(struct datagrams *d) {
  if (!d->queued) {
    d->queued = true;
    d->next_ready = NULL;
    if (ready_last != NULL) {
      ready_last->next_ready = d;
    } else {
      ready_first = d;
    }
    ready_last = d;
  }
}

/* ---- queues ---------------------------------------------------------------------------------------- */

bool queue_add(struct queue *q, const struct place *place, const uint8_t *head, size_t head_size,
               const uint8_t *data, size_t size) {
  struct packet *p = malloc(sizeof *p + head_size + size);
  if (p == NULL) {
    return false;
  }
  p->next = NULL;
  p->place = *place;
  p->size = head_size + size;
  if (head_size > 0) {
    memcpy(p->bytes, head, head_size);
  }
  if (size > 0) {
    memcpy(p->bytes + head_size, data, size);
  }
  if (q->last != NULL) {
    q->last->next = p;
  } else {
    q->first = p;
  }
  q->last = p;
  q->count++;
  q->bytes += p->size;
  return true;
}

void queue_drop_first(struct queue *q) {
  struct packet *p = q->first;
  q->first = p->next;
  if (q->first == NULL) {
    q->last = NULL;
  }
  q->count--;
  q->bytes -= p->size;
  free(p);
}

void queue_clear(struct queue *q) {
  while (q->first != NULL) {
    queue_drop_first(q);
  }
}

/* ---- addresses ------------------------------------------------------------------------------------- */

bool datagrams_can_name(const struct datagrams *d, const struct place *of) {
  return d->family != AF_INET || memcmp(of->addr, v4_prefix, sizeof v4_prefix) == 0;
}

static socklen_t name_of(const struct datagrams *d, const struct place *place, struct sockaddr_storage *to) {
  memset(to, 0, sizeof *to);
  if (d->family == AF_INET) {
    struct sockaddr_in *in = (void *)to;
    in->sin_family = AF_INET;
    in->sin_port = htons(place->port);
    memcpy(&in->sin_addr, place->addr + 12, 4);
    return sizeof *in;
  }
  struct sockaddr_in6 *in6 = (void *)to;
  in6->sin6_family = AF_INET6;
  in6->sin6_port = htons(place->port);
  in6->sin6_scope_id = place->scope;
  memcpy(&in6->sin6_addr, place->addr, 16);
  return sizeof *in6;
}

static bool place_of(const struct datagrams *d, const struct sockaddr_storage *name, struct place *to) {
  memset(to, 0, sizeof *to);
  if (name->ss_family != d->family) {
    return false;
  }
  if (d->family == AF_INET) {
    const struct sockaddr_in *in = (const void *)name;
    memcpy(to->addr, v4_prefix, sizeof v4_prefix);
    memcpy(to->addr + 12, &in->sin_addr, 4);
    to->port = ntohs(in->sin_port);
  } else {
    const struct sockaddr_in6 *in6 = (const void *)name;
    memcpy(to->addr, &in6->sin6_addr, 16);
    to->port = ntohs(in6->sin6_port);
    to->scope = in6->sin6_scope_id;
  }
  return true;
}

void datagrams_name(const struct datagrams *d, const struct place *of, char to[DATAGRAMS_NAME_MAX]) {
  char text[INET6_ADDRSTRLEN] = "";
  inet_ntop(d->family, of->addr + (d->family == AF_INET ? 12 : 0), text, sizeof text);
  snprintf(to, DATAGRAMS_NAME_MAX, "%s %u", text, of->port);
}

bool datagrams_connected(const struct datagrams *d) {
  struct sockaddr_storage name;
  socklen_t size = sizeof name;
  return getpeername(d->udp, (struct sockaddr *)&name, &size) == 0;
}

/* ---- out ------------------------------------------------------------------------------------------- */

static void end_soon(struct datagrams *d) {
  d->over = true;
  datagrams_queue(d);
}

/* An ICMP message: a connected socket's program hears of it. */
static void network_error(struct datagrams *d, int error) {
  static const struct place nowhere;
  if (d->until != 0 && error == ECONNREFUSED) {
    end_soon(d);
  } else if (datagrams_connected(d)) {
    datagrams_give(d, BERTHA_DGRAM_ERROR, &nowhere, (uint64_t)error, NULL, 0, false);
  }
}

/* False: there is no room for it now. */
static bool sent(struct datagrams *d, const struct place *to, const uint8_t *data, size_t size) {
  struct sockaddr_storage name;
  socklen_t length = name_of(d, to, &name);
  if (sendto(d->udp, data, size, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&name, length) < 0) {
    if (errno == EAGAIN || errno == EINTR) {
      return false;
    }
    d->lost++; /* this one cannot go: an ICMP message, no route, too long */
    if (errno == ECONNREFUSED) {
      network_error(d, ECONNREFUSED);
    }
  }
  return true;
}

void datagrams_send(struct datagrams *d, const struct place *to, const uint8_t *data, size_t size) {
  if (d->to_network.count >= 2 * QUEUE_MAX) {
    d->lost++;
    return;
  }
  if (d->to_network.first == NULL && d->udp_out) {
    d->udp_out = sent(d, to, data, size); /* not because others wait: an edge that has come is told once */
    if (d->udp_out) {
      return;
    }
  }
  if (!queue_add(&d->to_network, to, NULL, 0, data, size)) {
    d->lost++;
  }
}

static void flush_network(struct datagrams *d) {
  while (d->udp_out && d->to_network.first != NULL) {
    const struct packet *p = d->to_network.first;
    if (!sent(d, &p->place, p->bytes, p->size)) {
      d->udp_out = false;
      return;
    }
    queue_drop_first(&d->to_network);
  }
}

/* False: the program has to take others first. */
static bool given(struct datagrams *d, const void *head, size_t head_size, const void *data, size_t size) {
  struct iovec parts[2] = {{(void *)(uintptr_t)head, head_size}, {(void *)(uintptr_t)data, size}};
  struct msghdr msg = {.msg_iov = parts, .msg_iovlen = size > 0 ? 2 : 1};
  /* Another error means that it has closed, which the next read says. */
  return sendmsg(d->program, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 || (errno != EAGAIN && errno != EINTR);
}

bool datagrams_full(const struct datagrams *d) {
  return d->to_program.count >= QUEUE_MAX || d->to_program.bytes >= QUEUE_BYTES;
}

bool datagrams_give(struct datagrams *d, uint16_t kind, const struct place *of, uint64_t value,
                    const uint8_t *data, size_t size, bool much) {
  if (d->over || d->until != 0) {
    return much; /* nobody is there any more whom it could be lost to */
  }
  if (much ? d->to_program.count > MUCH * QUEUE_MAX || d->to_program.bytes > (size_t)MUCH * QUEUE_BYTES
           : datagrams_full(d)) {
    return false;
  }
  struct bertha_dgram head = {
      .magic = BERTHA_DGRAM_MAGIC, .kind = kind, .port = of->port, .scope = of->scope, .value = value};
  memcpy(head.addr, of->addr, sizeof head.addr);
  if (d->to_program.first == NULL && d->program_out) {
    d->program_out = given(d, &head, sizeof head, data, size);
    if (d->program_out) {
      return true;
    }
  }
  return queue_add(&d->to_program, of, (const uint8_t *)&head, sizeof head, data, size);
}

static void flush_program(struct datagrams *d) {
  while (d->program_out && d->to_program.first != NULL) {
    const struct packet *p = d->to_program.first;
    if (!given(d, p->bytes, p->size, NULL, 0)) {
      d->program_out = false;
      return;
    }
    queue_drop_first(&d->to_program);
  }
}

/* ---- in -------------------------------------------------------------------------------------------- */

bool datagrams_busy(const struct datagrams *d) {
  return d->to_network.first != NULL || d->beside >= 0 || peers_unsaid(d);
}

static void program_closed(struct datagrams *d) {
  d->until = carrier_now() + (d->server ? LINGER_SERVER_NS : LINGER_CLIENT_NS);
  timer_set(&d->linger_timer, d->until);
  queue_clear(&d->to_program);
  if (d->beside >= 0) {
    beside_closed(d);
    return;
  }
  const struct peer *only = peers_only(d);
  /* So that the kernel says when nobody is there any more.  A server's may have gone to another carrier, to which all speak. */
  if (datagrams_busy(d) && only != NULL && !d->server) {
    struct sockaddr_storage name;
    socklen_t size = name_of(d, &only->place, &name);
    (void)!connect(d->udp, (struct sockaddr *)&name, size);
  }
}

/* One who does not take its datagrams keeps nobody else waiting. */
static bool takes_program(const struct datagrams *d) {
  bool alone = d->currents == 1 && d->speaking != NULL && d->speaking->waiting.count >= WAITING_MAX / 2;
  bool beside = d->beside_full || (d->beside >= 0 && d->beside_own >= BESIDE_MAX);
  return d->program_in && d->until == 0 && !d->over && d->to_network.count < QUEUE_MAX && !alone && !beside;
}

static void program_said(struct datagrams *d, const uint8_t *data, size_t size, int fd) {
  struct bertha_dgram head = {.magic = 0};
  memcpy(&head, data, size < sizeof head ? 0 : sizeof head);
  struct place place = {.scope = head.scope, .port = head.port};
  memcpy(place.addr, head.addr, sizeof place.addr);
  if (head.magic == BERTHA_DGRAM_MAGIC && head.kind == BERTHA_DGRAM_BESIDE && fd >= 0) {
    beside_begin(d, fd);
    return;
  }
  if (fd >= 0) {
    close(fd);
  }
  if (head.magic != BERTHA_DGRAM_MAGIC || head.port == 0) {
    return; /* not through the shim: whoever wrote this meant no datagram of ours */
  }
  if (head.kind == BERTHA_DGRAM_PLAN) {
    peers_planned(d, &place, data + sizeof head, size - sizeof head, head.value);
  } else if (head.kind == BERTHA_DGRAM_DATA) {
    data += sizeof head;
    size -= sizeof head;
    size_t each = head.value > 0 && head.value < size ? (size_t)head.value : size;
    for (;;) {
      size_t n = size < each ? size : each;
      peers_program_sent(d, &place, data, n);
      data += n;
      size -= n;
      if (size == 0) {
        return;
      }
    }
  }
}

static void read_program(struct datagrams *d) {
  static uint8_t data[BIGGEST + PLAN_ROOM];
  for (int i = 0; i < ROUNDS && takes_program(d); i++) {
    int fds[CARRIER_FDS_MAX], count;
    bool cut; /* one without the descriptor that it should have says nothing */
    ssize_t n = carrier_receive(d->program, data, sizeof data, fds, &count, &cut);
    while (count > 1 || (n <= 0 && count > 0)) { /* one at the most is meant */
      close(fds[--count]);
    }
    if (n < 0) {
      d->program_in = false;
    } else if (n == 0) {
      program_closed(d);
    } else {
      program_said(d, data, (size_t)n, count > 0 ? fds[0] : -1);
    }
  }
}

/* Where the program has set UDP_GRO on its socket, what came is several datagrams of so many bytes; else 0. */
static size_t merged(struct msghdr *msg) {
  int each = 0;
  for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
    if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO && c->cmsg_len >= CMSG_LEN(sizeof each)) {
      memcpy(&each, CMSG_DATA(c), sizeof each);
    }
  }
  return each > 0 ? (size_t)each : 0;
}

static void read_network(struct datagrams *d) {
  static uint8_t data[BIGGEST];
  union {
    struct cmsghdr aligned;
    uint8_t bytes[CONTROL_ROOM];
  } control;
  for (int i = 0; i < ROUNDS && d->udp_in && !d->over; i++) {
    struct sockaddr_storage name = {.ss_family = AF_UNSPEC};
    struct place place;
    struct iovec all_of_it = {data, sizeof data};
    struct msghdr msg = {.msg_name = &name,
                         .msg_namelen = sizeof name,
                         .msg_iov = &all_of_it,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = sizeof control};
    ssize_t n = recvmsg(d->udp, &msg, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
      d->udp_in = errno == EINTR;
    } else if (n < 0) {
      network_error(d, errno);
    } else if (msg.msg_namelen <= sizeof name && place_of(d, &name, &place)) {
      size_t size = (size_t)n, each = merged(&msg);
      each = each > 0 && each < size ? each : size;
      for (size_t at = 0; at == 0 || (at < size && !d->over); at += each > 0 ? each : 1) {
        peers_network_said(d, &place, data + at, size - at < each ? size - at : each);
      }
    }
  }
}

/* ---- beginning and end ----------------------------------------------------------------------------- */

static void close_now(struct datagrams *d) {
  dgram_tell(d);
  d->over = true;
  peers_free(d);
  beside_end(d);
  timer_set(&d->tell_timer, 0);
  timer_set(&d->linger_timer, 0);
  timer_set(&d->agent_timer, 0);
  queue_clear(&d->to_program);
  queue_clear(&d->to_network);
  *(d->previous != NULL ? &d->previous->next : &all) = d->next;
  if (d->next != NULL) {
    d->next->previous = d->previous;
  }
  /* Closing is not enough: the program has a duplicate of the UDP socket, which keeps it in the set. */
  carrier_unwatch(d->udp);
  carrier_unwatch(d->program);
  close(d->udp);
  close(d->program);
  free(d->shown);
  free(d->strangers);
  carrier_let_go(d->shim);
  free(d);
}

static void run(struct datagrams *d) {
  flush_program(d);
  flush_network(d);
  beside_run(d);
  read_network(d);
  read_program(d);
  if (d->until != 0 && !datagrams_busy(d)) {
    d->over = true;
  }
}

void datagrams_run(void) {
  struct datagrams *end = ready_last; /* those that are queued meanwhile come in the next turn */
  while (ready_first != NULL) {
    struct datagrams *d = ready_first;
    run(d); /* while it is queued, so that it is not twice */
    ready_first = d->next_ready;
    if (ready_first == NULL) {
      ready_last = NULL;
    }
    d->queued = false;
    bool last = d == end;
    if (d->over) {
      close_now(d);
    } else if (d->udp_in || takes_program(d) || beside_has_more(d)) {
      datagrams_queue(d);
    }
    if (last) {
      break;
    }
  }
}

void datagrams_event(struct datagrams *d, bool network, uint32_t events) {
  bool in = (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
  bool out = (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0;
  if (network) {
    d->udp_in |= in;
    d->udp_out |= out;
  } else {
    d->program_in |= in;
    d->program_out |= out;
  }
  datagrams_queue(d);
}

static void tell_due(void *who) {
  dgram_tell(who);
}

/* Who is bound here must tell the next agent: nobody else wakes up a program that only answers. */
static void agent_due(void *who) {
  static const struct place nowhere;
  struct datagrams *d = who;
  if (d->to_program.first == NULL) {
    datagrams_give(d, BERTHA_DGRAM_NO_AGENT, &nowhere, 0, NULL, 0, false);
  }
  timer_set(&d->agent_timer, carrier_now() + AGENT_NS);
}

static void linger_due(void *who) {
  end_soon(who);
}

void datagrams_agent_gone(void) {
  exchange_agent_gone();
  for (struct datagrams *d = all; d != NULL; d = d->next) {
    if (d->server && !d->over) {
      agent_due(d);
    }
  }
}

static int option(int fd, int name) {
  int value = -1;
  socklen_t size = sizeof value;
  return getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
}

static bool are_such(int udp, int program) {
  int family = option(udp, SO_DOMAIN);
  return (family == AF_INET || family == AF_INET6) && option(udp, SO_PROTOCOL) == IPPROTO_UDP &&
         option(program, SO_DOMAIN) == AF_UNIX && option(program, SO_TYPE) == SOCK_SEQPACKET;
}

void datagrams_carry(struct shim *shim, const struct bertha_carrier_carry *head, int udp, int program) {
  struct datagrams *d = are_such(udp, program) ? calloc(1, sizeof *d) : NULL;
  if (d == NULL) {
    close(udp);
    close(program);
    return;
  }
  d->shim = shim;
  d->beside = -1;
  d->udp = udp;
  d->program = program;
  d->family = option(udp, SO_DOMAIN);
  d->server = head->side != 0;
  d->mode = head->mode;
  d->listener = head->listener;
  d->status_index = head->status_index;
  d->held.early_max = HELD_EARLY;
  if (d->status_index < shim->status_count) {
    d->life = __atomic_load_n(&shim->statuses[d->status_index].life, __ATOMIC_ACQUIRE);
  }
  d->udp_in = d->udp_out = d->program_in = d->program_out = true;
  d->tell_timer = (struct timer){.due = tell_due, .who = d};
  d->linger_timer = (struct timer){.due = linger_due, .who = d};
  d->agent_timer = (struct timer){.due = agent_due, .who = d};
  d->next = all;
  if (all != NULL) {
    all->previous = d;
  }
  all = d;
  carrier_hold(shim);
  if (!carrier_watch_datagrams(d, udp, program)) {
    d->over = true;
  }
  if (d->server && !carrier_has_agent()) {
    timer_set(&d->agent_timer, carrier_now() + AGENT_NS);
  }
  datagrams_queue(d);
}

void datagrams_close_all(void) {
  for (struct datagrams *d = all; d != NULL; d = d->next) {
    end_soon(d);
  }
  datagrams_run();
}
