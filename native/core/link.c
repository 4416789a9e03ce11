/* Listeners and links of this process: what the agent has handed out, mapped. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <linux/netlink.h>
#include <netinet/in.h>

#include "agentc.h"
#include "unixmail.h"

#define AGENTS_PORT 7277

enum { REFUSALS = 16, RING_MIN = 256 };
static const int64_t refusal_ns = 1000000000;

static struct {
  _Atomic uint32_t lock; /* of the two lists; both only grow at their head */
  struct listener *_Atomic listeners;
  struct link *_Atomic links;
  struct {
    uint64_t listener;
    int64_t until;
    uint32_t why;
  } refused[REFUSALS];
  unsigned next_refused;
} here;

void bertha_close_hidden(int fd);

static bool link_is_mine(const struct link *other) {
  for (struct link *l = atomic_load(&here.links); l != NULL; l = l->next) {
    if (l->side == BERTHA_SIDE_CLIENT && l->owner_pid == bertha.pid && l->listener == other->listener &&
        l->index == other->index) {
      return true;
    }
  }
  return false;
}

/* A client's process holds a record lock on each of its links, which the kernel takes away at its death
 * however it dies: so a claim that outlived its client is known for one at once, and not tied to a later
 * connection from the same port. */
static bool hold(struct link *l) {
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
  return REAL(fcntl)(l->fd, F_SETLK, &lock) == 0;
}

/* Client and server in one process: closing any descriptor of the memfd has dropped our lock on it (fcntl(2)). */
static void hold_again(uint64_t listener, uint32_t index) {
  for (struct link *l = atomic_load(&here.links); l != NULL; l = l->next) {
    if (l->side == BERTHA_SIDE_CLIENT && l->owner_pid == bertha.pid && l->listener == listener &&
        l->index == index) {
      hold(l);
    }
  }
}

bool link_held(const struct link *l) {
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
  if (atomic_load_explicit(&l->header->dead, memory_order_relaxed)) {
    return false;
  }
  /* our own lock does not show: client and server in one process */
  return (REAL(fcntl)(l->fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK) || link_is_mine(l);
}

void link_after_fork(void) {
  atomic_store(&here.lock, 0); /* the lists are whole at any moment */
  for (struct link *l = atomic_load(&here.links); l != NULL; l = l->next) {
    atomic_store(&l->lock, 0);
    mail_forget(l); /* the parent's: an end that we had as well would never be seen to close */
  }
}

void link_fd_moved(int from, int to) {
  for (struct link *l = atomic_load(&here.links); l != NULL; l = l->next) {
    if (l->fd == from) {
      l->fd = to;
      if (l->side == BERTHA_SIDE_CLIENT && l->owner_pid == bertha.pid) {
        hold(l); /* closing a duplicate has dropped it (fcntl(2)) */
      }
    }
    if (l->mailbox == from) {
      l->mailbox = to;
    }
    mail_fd_moved(l, from, to);
    if (l->bell_fd == from) {
      l->bell_fd = to;
    }
  }
}

struct listener *listener_get(uint64_t id) {
  for (struct listener *l = atomic_load(&here.listeners); l != NULL; l = l->next) {
    if (l->id == id) {
      return l;
    }
  }
  return NULL;
}

/* Sealed against shrinking, or we would take a SIGBUS at the other side's pleasure. */
static void *map_sealed(int fd, size_t least, size_t *size) {
  struct stat st;
  int seals = REAL(fcntl)(fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || fstat(fd, &st) != 0 || (size_t)st.st_size < least) {
    return NULL;
  }
  *size = (size_t)st.st_size;
  void *p = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED) {
    return NULL;
  }
  madvise(p, *size, MADV_DONTDUMP);
  return p;
}

/* Takes the descriptor over. */
struct listener *listener_add(uint64_t id, uint64_t generation, int claims_fd) {
  struct listener *known = listener_get(id);
  if (known != NULL) {
    known->generation = generation;
    known->pid = bertha.pid;
    REAL(close)(claims_fd);
    return known;
  }
  size_t size;
  struct bertha_claims_header *claims = map_sealed(
      claims_fd, sizeof *claims + BERTHA_CLAIM_BUCKETS * sizeof(struct bertha_claims_bucket), &size);
  REAL(close)(claims_fd);
  if (claims == NULL) {
    return NULL;
  }
  struct listener *l = calloc(1, sizeof *l);
  if (l == NULL || claims->magic != BERTHA_MAGIC_CLAIM || claims->version != BERTHA_LAYOUT_VERSION ||
      claims->bucket_count != BERTHA_CLAIM_BUCKETS) {
    munmap(claims, size);
    free(l);
    return NULL;
  }
  l->id = id;
  l->generation = generation;
  l->pid = bertha.pid;
  l->claims = claims;
  bool locked = bertha_lock(&here.lock); /* or we are in a signal handler, in the middle of just this */
  struct listener *first = atomic_load(&here.listeners);
  do {
    l->next = first;
  } while (!atomic_compare_exchange_weak(&here.listeners, &first, l));
  if (locked) {
    bertha_unlock(&here.lock);
  }
  return l;
}

/* The port on which other hosts' agents ask, in our network namespace: taken if the agent lives in this one too.  Only
 * for listeners with chunnels. */
static int agents_port(void) {
  const char *text = getenv("BERTHA_AGENT_PORT");
  int port = text != NULL && *text != '\0' ? atoi(text) : AGENTS_PORT;
  struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
  int fd =
      port > 0 && port < 65536 ? REAL(socket)(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0) : -1;
  int off = 0;
  if (fd >= 0 && (REAL(setsockopt)(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) != 0 ||
                  REAL(bind)(fd, (struct sockaddr *)&any, sizeof any) != 0 || REAL(listen)(fd, 16) != 0)) {
    REAL(close)(fd);
    fd = -1;
  }
  return fd;
}

static uint32_t tell(int *fds, int count, struct bertha_listen_reply *reply, int *claims) {
  struct bertha_listen body = {0};
  uint32_t why =
      agent_call(BERTHA_OP_LISTEN, &body, sizeof body, fds, count, reply, sizeof *reply, claims, 1);
  if (why == 0 && reply->dag != BERTHA_DAG_NONE && count == 3 && (fds[3] = agents_port()) >= 0) {
    if (*claims >= 0) {
      REAL(close)(*claims);
    }
    return tell(fds, 4, reply, claims);
  }
  return why;
}

/* Tells the agent of a listening socket; the agent sees by the socket itself that we own its address. */
struct listener *listener_register(int fd, uint32_t *why) {
  uint64_t generation = directory_generation();
  int fds[4] = {fd, -1, -1, -1};
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
      l = listener_add(reply.listener, generation != 0 ? generation : directory_generation(), claims);
      *why = l != NULL ? 0 : BERTHA_WHY_NO_MEMORY;
    }
  }
  for (int i = 1; i < 4; i++) {
    if (fds[i] >= 0) {
      REAL(close)(fds[i]);
    }
  }
  return l;
}

/* The other side may write into its mapping at any time: what has been checked here is what is used. */
static bool header_copy(struct bertha_link_header *h, const struct bertha_link_header *shared, size_t size,
                        uint64_t listener, uint32_t index) {
  memcpy((void *)h, (const void *)shared, sizeof *h);
  atomic_signal_fence(memory_order_seq_cst); /* no reading again instead */
  size_t slots = (size_t)h->slot_count * sizeof(struct bertha_slot);
  size_t rings = (size_t)h->slot_count * 2 * h->ring_max;
  size_t words = (h->slot_count + 63) / 64 * 8;
  if (h->magic != BERTHA_MAGIC_LINK || h->version != BERTHA_LAYOUT_VERSION || h->listener != listener ||
      h->index != index || h->slot_count == 0 || h->slot_count > BERTHA_LINK_SLOTS || h->ring_max < 4096 ||
      h->ring_max > BERTHA_RING_MAX || (h->ring_max & (h->ring_max - 1)) != 0) {
    return false;
  }
  for (int side = 0; side < 2; side++) {
    if (h->dirty_offset[side] % 64 != 0 || h->dirty_offset[side] > size ||
        words > size - h->dirty_offset[side] || h->sleeper_offset[side] % 64 != 0 ||
        h->sleeper_offset[side] > size ||
        BERTHA_SLEEPERS * sizeof(struct bertha_sleeper) > size - h->sleeper_offset[side]) {
      return false;
    }
  }
  return h->slot_offset % 64 == 0 && h->slot_offset <= size && slots <= size - h->slot_offset &&
         h->ring_offset % 4096 == 0 && h->ring_offset <= size && rings <= size - h->ring_offset;
}

static void close_both(int a, int b) {
  REAL(close)(a);
  if (b >= 0) {
    REAL(close)(b);
  }
}

static struct link *fill_link(struct link *l, struct bertha_link_header *shared,
                              const struct bertha_link_header *h, size_t size,
                              const struct bertha_link_reply *reply, int side) {
  l->header = shared;
  l->base = (uint8_t *)shared;
  l->size = size;
  l->listener = reply->listener;
  l->index = reply->index;
  l->slot_count = h->slot_count;
  l->ring_max = h->ring_max;
  l->ring_offset = h->ring_offset;
  l->side = (uint8_t)side;
  l->plan = reply->plan;
  if (l->plan.ring_size < RING_MIN || (l->plan.ring_size & (l->plan.ring_size - 1)) != 0) {
    l->plan.ring_size = 0;
  }
  for (int s = 0; s < 2; s++) {
    l->dirty[s] = (_Atomic uint64_t *)(void *)(l->base + h->dirty_offset[s]);
    l->sleepers[s] = (struct bertha_sleeper *)(void *)(l->base + h->sleeper_offset[s]);
  }
  l->slots = (struct bertha_slot *)(void *)(l->base + h->slot_offset);
  l->left = -1;
  l->bell_fd = -1;
  l->mailbox = -1;
  l->spares.target = 1;
  return l;
}

static struct link *enlist(struct link *l) {
  bool locked = bertha_lock(&here.lock); /* or we are in a signal handler, in the middle of just this */
  struct link *first = atomic_load(&here.links);
  do {
    l->next = first;
  } while (!atomic_compare_exchange_weak(&here.links, &first, l));
  if (locked) {
    bertha_unlock(&here.lock);
  }
  return l;
}

struct link *link_inherit(int fd, int side, const struct bertha_link_reply *reply) {
  size_t size = 0;
  struct bertha_link_header *h = map_sealed(fd, sizeof *h, &size);
  struct link *l = calloc(1, sizeof *l);
  struct bertha_link_header checked;
  if (h == NULL || l == NULL || !header_copy(&checked, h, size, reply->listener, reply->index)) {
    if (h != NULL) {
      munmap(h, size);
    }
    free(l);
    REAL(close)(fd);
    return NULL;
  }
  fill_link(l, h, &checked, size, reply, side);
  l->owner_pid = -1;
  l->fd = bertha_hide_fd(fd);
  return enlist(l);
}

/* Takes both descriptors over. */
static struct link *map_link(int fd, int mailbox, const struct bertha_link_reply *reply, int side) {
  size_t size = 0;
  struct bertha_link_header *h = map_sealed(fd, sizeof *h, &size);
  if (h == NULL) {
    close_both(fd, mailbox);
    return NULL;
  }
  struct link *l = calloc(1, sizeof *l);
  struct bertha_link_header checked;
  uint16_t *stack = side == BERTHA_SIDE_CLIENT ? calloc(2 * BERTHA_LINK_SLOTS, sizeof *stack) : NULL;
  if (l == NULL || (side == BERTHA_SIDE_CLIENT && stack == NULL) ||
      !header_copy(&checked, h, size, reply->listener, reply->index)) {
    munmap(h, size);
    close_both(fd, mailbox);
    free(l);
    free(stack);
    return NULL;
  }
  fill_link(l, h, &checked, size, reply, side);
  l->mailbox = mailbox >= 0 ? bertha_hide_fd(mailbox) : -1;
  l->mail = mailbox >= 0 && side == BERTHA_SIDE_CLIENT ? calloc(l->slot_count, sizeof *l->mail) : NULL;
  l->owner_pid = bertha.pid;
  l->free_slots = stack;
  l->fd = bertha_hide_fd(fd);
  if (side == BERTHA_SIDE_CLIENT && !hold(l)) {
    munmap(h, size); /* without it nobody would believe our claims */
    bertha_close_hidden(l->fd);
    bertha_close_hidden(l->mailbox);
    free(l->mail);
    free(l);
    free(stack);
    return NULL;
  }
  return enlist(l);
}

struct link *link_adopt(int fd, int side, const struct bertha_link_reply *reply) {
  return map_link(fd, -1, reply, side);
}

void link_drop(struct link *link) {
  if (bertha_lock(&here.lock)) {
    struct link *_Atomic *place = &here.links;
    for (struct link *l = atomic_load(place); l != NULL; place = &l->next, l = atomic_load(place)) {
      if (l == link) {
        atomic_store(place, atomic_load(&l->next));
        break;
      }
    }
    bertha_unlock(&here.lock);
  }
  munmap(link->base, link->size);
  bertha_close_hidden(link->fd);
  bertha_close_hidden(link->bell_fd);
  free(link->free_slots);
  free(link);
}

uint8_t *link_ring(const struct link *link, uint32_t slot, int side) {
  return link->base + link->ring_offset + ((size_t)slot * 2 + (size_t)side) * link->ring_max;
}

static uint32_t refused(uint64_t listener) {
  for (unsigned i = 0; i < REFUSALS; i++) {
    if (here.refused[i].listener == listener && bertha_now_ns() < here.refused[i].until) {
      return here.refused[i].why;
    }
  }
  return 0;
}

static void remember_refusal(uint64_t listener, uint32_t why) {
  unsigned i = here.next_refused++ % REFUSALS;
  here.refused[i].listener = listener;
  here.refused[i].why = why;
  here.refused[i].until = bertha_now_ns() + refusal_ns;
}

static bool has_room(struct link *l) {
  return l->free_count > 0 || l->next_fresh < l->slot_count;
}

/* Slots that both sides have left since we last looked (a child of ours, or the server, was the later). */
static void sweep(struct link *l) {
  l->free_count = 0;
  l->left = -1;
  for (uint32_t s = 0; s < l->next_fresh; s++) {
    struct bertha_slot *slot = &l->slots[s];
    uint32_t state = BERTHA_SLOT_STATE(atomic_load_explicit(&slot->state, memory_order_acquire));
    if (state == BERTHA_SLOT_FREE ||
        (atomic_load_explicit(&slot->watch[BERTHA_SIDE_CLIENT].done, memory_order_acquire) &&
         (state == BERTHA_SLOT_CLAIMED || state == BERTHA_SLOT_REFUSED ||
          atomic_load_explicit(&slot->watch[BERTHA_SIDE_SERVER].done, memory_order_acquire)))) {
      l->free_slots[l->free_count++] = (uint16_t)s;
    }
  }
}

struct link *link_to(uint64_t listener, const uint8_t addr[16], uint16_t port, uint64_t netns,
                     uint32_t *why) {
  for (struct link *l = atomic_load(&here.links); l != NULL; l = l->next) {
    if (l->listener == listener && l->side == BERTHA_SIDE_CLIENT && l->owner_pid == bertha.pid) {
      if (has_room(l)) {
        return l;
      }
      if (bertha_lock(&l->lock)) {
        sweep(l);
        bertha_unlock(&l->lock);
      }
      if (has_room(l)) {
        return l;
      }
    }
  }
  *why = refused(listener);
  if (*why != 0) {
    return NULL;
  }
  struct bertha_connect body = {.listener = listener, .server_port = port, .netns = netns};
  memcpy(body.server_addr, addr, 16);
  struct bertha_link_reply reply;
  int fds[3]; /* link, claims, mailbox */
  *why = agent_call(BERTHA_OP_CONNECT, &body, sizeof body, NULL, 0, &reply, sizeof reply, fds, 3);
  struct link *l = NULL;
  if (*why == 0) {
    struct listener *to = NULL;
    if (fds[0] >= 0 && fds[1] >= 0) {
      to = listener_add(reply.listener, directory_generation(), fds[1]);
      fds[1] = -1;
    }
    if (to != NULL) {
      l = map_link(fds[0], fds[2], &reply, BERTHA_SIDE_CLIENT);
      fds[0] = fds[2] = -1;
    }
    if (l != NULL) {
      l->claims = to->claims;
    } else {
      *why = BERTHA_WHY_NO_MEMORY;
    }
    for (int i = 0; i < 3; i++) {
      if (fds[i] >= 0) {
        REAL(close)(fds[i]);
      }
    }
  }
  if (l == NULL) {
    remember_refusal(listener, *why);
  }
  return l;
}

/* A server outlives its clients: what it holds of a link whose client process is gone, and on which no connection is left,
 * goes when the next client comes.  The address range stays taken (other threads may still be looking at it, and find
 * zeros); the memory and the descriptors are given back. */
static void retire_links(void) {
  struct link *_Atomic *place = &here.links;
  if (!bertha_lock(&here.lock)) {
    return;
  }
  for (struct link *l = atomic_load(place); l != NULL; l = atomic_load(place)) {
    bool gone = l->side == BERTHA_SIDE_SERVER && atomic_load(&l->header->dead) && !conn_uses_link(l);
    if (!gone) {
      place = &l->next;
      continue;
    }
    atomic_store(place, atomic_load(&l->next));
    int fd = l->fd;
    int mailbox = l->mailbox;
    l->fd = l->mailbox = -1;
    mail_forget(l);
    bertha_close_hidden(fd);
    bertha_close_hidden(mailbox);
    mmap(l->base, l->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
         -1, 0);
  }
  bertha_unlock(&here.lock);
}

struct link *link_fetch(struct listener *listener, uint32_t index) {
  for (struct link *l = atomic_load(&here.links); l != NULL; l = l->next) {
    if (l->listener == listener->id && l->index == index && l->side == BERTHA_SIDE_SERVER) {
      return l;
    }
  }
  retire_links();
  struct bertha_link body = {.listener = listener->id, .index = index};
  struct bertha_link_reply reply;
  int fds[2]; /* link, mailbox */
  if (agent_call(BERTHA_OP_LINK, &body, sizeof body, NULL, 0, &reply, sizeof reply, fds, 2) != 0 ||
      fds[0] < 0) {
    return NULL;
  }
  struct link *mapped = map_link(fds[0], fds[1], &reply, BERTHA_SIDE_SERVER);
  hold_again(listener->id, index);
  return mapped;
}

/* The slot last given back first: its pages are warm. */
int slot_take(struct link *l) {
  int s = -1;
  if (!bertha_lock(&l->lock)) {
    return -1;
  }
  if (l->free_count == 0 && l->next_fresh >= l->slot_count) {
    sweep(l);
  }
  if (l->left >= 0 &&
      atomic_load_explicit(&l->slots[l->left].watch[BERTHA_SIDE_SERVER].done, memory_order_acquire)) {
    s = l->left;
    l->left = -1;
  } else if (l->free_count > 0) {
    s = l->free_slots[--l->free_count];
  } else if (l->next_fresh < l->slot_count) {
    s = (int)l->next_fresh++;
  }
  if (s >= 0) { /* so that a sweep does not take it for free before the claim stands in it */
    atomic_store(&l->slots[s].watch[BERTHA_SIDE_CLIENT].done, 0);
    uint32_t use = BERTHA_SLOT_USE(atomic_load(&l->slots[s].state)) + 1;
    atomic_store(&l->slots[s].state, BERTHA_SLOT_WORD(use, BERTHA_SLOT_REFUSED));
  }
  bertha_unlock(&l->lock);
  return s;
}

/* The client's side will not touch the slot any more.  If the server is yet to leave it, it is looked at again at the
 * next claim, or found by a later sweep; so it is by the process that took it when another one is the last to go.
 * The slot counts as left only under the lock: a sweep would find it a second time. */
void slot_give_back(struct link *l, uint32_t slot) {
  struct bertha_watch *watch = l->slots[slot].watch;
  if (l->owner_pid != bertha.pid || l->side != BERTHA_SIDE_CLIENT || !bertha_lock(&l->lock)) {
    atomic_store_explicit(&watch[BERTHA_SIDE_CLIENT].done, 1, memory_order_release);
    return;
  }
  uint32_t state = BERTHA_SLOT_STATE(atomic_load(&l->slots[slot].state));
  atomic_store_explicit(&watch[BERTHA_SIDE_CLIENT].done, 1, memory_order_release);
  if (state == BERTHA_SLOT_ATTACHED &&
      !atomic_load_explicit(&watch[BERTHA_SIDE_SERVER].done, memory_order_acquire)) {
    l->left = (int)slot;
  } else if (l->free_count < l->slot_count) {
    l->free_slots[l->free_count++] = (uint16_t)slot;
  }
  bertha_unlock(&l->lock);
}
