/* Links of this process: what the agent has handed out, mapped. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "agentc.h"
#include "links.h"
#include "room.h"
#include "trim.h"
#include "unixmail.h"
#include "wait.h"

enum { REFUSALS = 16, RING_MIN = 256 };
static const int64_t refusal_ns = 1000000000;

struct mapped mapped;
static struct {
  uint64_t listener;
  int64_t until;
  uint32_t why;
} refusals[REFUSALS];
static unsigned next_refusal;

void bertha_close_hidden(int fd);

static struct link *my_link(uint64_t listener, uint32_t index) {
  struct link *l = mapped.links;
  while (l != NULL && (l->side != BERTHA_SIDE_CLIENT || l->owner_pid != bertha.pid ||
                       l->listener != listener || l->index != index)) {
    l = l->next;
  }
  return l;
}

/* A client's process holds a record lock on each of its links, which the kernel takes away at its death
 * however it dies: so a claim that outlived its client is known for one at once, and not tied to a later
 * connection from the same port. */
static bool hold(struct link *l) {
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
  return REAL(fcntl)(l->fd, F_SETLK, &lock) == 0;
}

void link_hold_again(uint64_t listener, uint32_t index) {
  struct link *l = my_link(listener, index);
  if (l != NULL) {
    hold(l);
  }
}

void links_hold_again(void) {
  bool locked = bertha_lock(&mapped.lock);
  for (struct link *l = mapped.links; l != NULL; l = l->next) {
    if (l->side == BERTHA_SIDE_CLIENT && l->owner_pid == bertha.pid && l->fd >= 0) {
      hold(l);
    }
  }
  if (locked) {
    bertha_unlock(&mapped.lock);
  }
}

bool link_held(const struct link *l) {
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
  if (atomic_load_explicit(&l->header->dead, memory_order_relaxed)) {
    return false;
  }
  if (REAL(fcntl)(l->fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK) {
    return true;
  }
  bool mine = false; /* our own lock does not show: client and server in one process */
  if (bertha_lock(&mapped.lock)) {
    mine = my_link(l->listener, l->index) != NULL;
    bertha_unlock(&mapped.lock);
  }
  return mine;
}

void link_after_fork(void) {
  atomic_store(&mapped.lock, 0); /* who changes the lists holds forks off (conn_books_begin) */
  for (struct listener *l = mapped.listeners; l != NULL; l = l->next) {
    l->pins = 0;
  }
  for (struct link *l = mapped.old_links; l != NULL; l = l->next) {
    atomic_store(&l->sets_lock, 0);
    atomic_store(&l->named, 0);
  }
  for (struct link *l = mapped.links; l != NULL; l = l->next) {
    atomic_store(&l->lock, 0);
    atomic_store(&l->pairs, 0);
    atomic_store(&l->sets_lock, 0);
    atomic_store(&l->named, 0); /* this thread's waiter and the sets begin anew */
    mail_forget(l);             /* the parent's: an end that we had as well would never be seen to close */
  }
}

void link_fd_moved(int from, int to) {
  bool locked = bertha_lock(&mapped.lock);
  for (struct link *l = mapped.links; l != NULL; l = l->next) {
    if (l->fd == from) {
      l->fd = to;
    }
    if (l->mailbox == from) {
      l->mailbox = to;
    }
    mail_fd_moved(l, from, to);
    if (l->bell_fd == from) {
      l->bell_fd = to;
    }
    for (uint32_t slot = 0; l->bells != NULL && slot < l->slot_count; slot++) {
      l->bells[slot] = l->bells[slot] == from ? to : l->bells[slot];
    }
  }
  if (locked) {
    bertha_unlock(&mapped.lock);
  }
}

size_t sealed_size(int fd, size_t least) {
  struct stat st;
  int seals = REAL(fcntl)(fd, F_GET_SEALS);
  bool sealed = seals >= 0 && (seals & F_SEAL_SHRINK) != 0 && fstat(fd, &st) == 0;
  return sealed && (size_t)st.st_size >= least ? (size_t)st.st_size : 0;
}

void *map_over(int fd, size_t size, void *over) {
  return over != NULL || room_allows(size) ? room_map(over, size, fd) : NULL;
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
  size_t loans = h->loan_offset != 0 ? (size_t)h->slot_count * BERTHA_LOAN_STRIDE : 0;
  if (h->loan_offset % 4096 != 0 || h->loan_offset > size || loans > size - h->loan_offset) {
    return false;
  }
  return h->slot_offset % 64 == 0 && h->slot_offset <= size && slots <= size - h->slot_offset &&
         h->ring_offset % 4096 == 0 && h->ring_offset <= size && rings <= size - h->ring_offset;
}

static void close_both(int a, int b) {
  QUIET(close)(a);
  if (b >= 0) {
    QUIET(close)(b);
  }
}

static struct link *fill_link(struct link *l, struct bertha_link_header *shared,
                              const struct bertha_link_header *h, size_t size,
                              const struct bertha_link_reply *reply, int side) {
  spin_once_linked();
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
  l->claimant = reply->claimant;
  if (l->plan.ring_size < RING_MIN || (l->plan.ring_size & (l->plan.ring_size - 1)) != 0) {
    l->plan.ring_size = 0;
  }
  for (int s = 0; s < 2; s++) {
    l->dirty[s] = (_Atomic uint64_t *)(void *)(l->base + h->dirty_offset[s]);
    l->sleepers[s] = (struct bertha_sleeper *)(void *)(l->base + h->sleeper_offset[s]);
  }
  l->slots = (struct bertha_slot *)(void *)(l->base + h->slot_offset);
  l->loans = h->loan_offset != 0 ? l->base + h->loan_offset : NULL;
  l->claims = NULL;
  l->free_count = 0;
  l->next_fresh = 0;
  l->left = -1;
  l->bell_fd = -1;
  l->bells = NULL;
  l->apart = false;
  l->mailbox = -1;
  l->spares.target = 1;
  atomic_store(&l->pairs, 0);
  l->sets = NULL; /* of an old one's, there are at most a parent's */
  for (unsigned i = 0; i < BERTHA_LINK_SLOTS / 64; i++) {
    atomic_store(&l->shared[i], 0);
  }
  return l;
}

static struct link *enlist(struct link *l) {
  conn_books_begin();
  if (!bertha_lock(&mapped.lock)) { /* a signal handler, in the middle of the list: it does without */
    conn_books_end();
    bertha_close_hidden(l->fd);
    bertha_close_hidden(l->mailbox);
    return NULL;
  }
  l->next = mapped.links;
  mapped.links = l;
  bertha_unlock(&mapped.lock);
  conn_books_end();
  return l;
}

/* Maps the memory that `l`, an old one or a new one, is to be; false: it is not a link, or there is no room. */
static bool map_memory(struct link *l, int fd, size_t size, const struct bertha_link_reply *reply, int side) {
  bool old = l->base != NULL;
  struct bertha_link_header *h = map_over(fd, size, l->base);
  struct bertha_link_header checked;
  if (h != NULL && header_copy(&checked, h, size, reply->listener, reply->index)) {
    fill_link(l, h, &checked, size, reply, side);
    return true;
  }
  if (h != NULL && !old) {
    munmap(h, size);
  }
  return false;
}

/* One that is not in use; NULL: no memory. */
static struct link *new_link(size_t size, bool old_too) {
  struct link *l = old_too ? old_link(size) : NULL;
  return l != NULL ? l : calloc(1, sizeof *l);
}

/* One that came to nothing.  What was in use before stays mapped: somebody may still look at it. */
static void no_link(struct link *l) {
  if (l != NULL && l->since == 0) {
    free(l->free_slots);
    free(l->mail);
    free(l);
  }
}

struct link *link_inherit(int fd, int side, const struct bertha_link_reply *reply) {
  size_t size = sealed_size(fd, sizeof(struct bertha_link_header));
  struct link *l = size != 0 ? new_link(size, false) : NULL;
  if (l == NULL || !map_memory(l, fd, size, reply, side)) {
    no_link(l);
    QUIET(close)(fd);
    return NULL;
  }
  l->owner_pid = -1;
  l->fd = bertha_hide_fd(fd);
  return enlist(l);
}

/* What a client's side needs for itself, and a server's does not. */
static bool client_memory(struct link *l, bool mailbox) {
  if (l->free_slots == NULL) {
    l->free_slots = calloc(2 * BERTHA_LINK_SLOTS, sizeof *l->free_slots);
  }
  if (mailbox && l->mail == NULL) {
    l->mail = calloc(BERTHA_LINK_SLOTS, sizeof *l->mail);
  }
  return l->free_slots != NULL;
}

/* Takes both descriptors over.  Not in the list yet. */
static struct link *prepare_link(int fd, int mailbox, const struct bertha_link_reply *reply, int side) {
  size_t size = sealed_size(fd, sizeof(struct bertha_link_header));
  struct link *l = size != 0 ? new_link(size, true) : NULL;
  if (l == NULL || (side == BERTHA_SIDE_CLIENT && !client_memory(l, mailbox >= 0)) ||
      !map_memory(l, fd, size, reply, side)) {
    no_link(l);
    close_both(fd, mailbox);
    return NULL;
  }
  l->mailbox = mailbox >= 0 ? bertha_hide_fd(mailbox) : -1;
  l->owner_pid = bertha.pid;
  l->fd = bertha_hide_fd(fd);
  if (side == BERTHA_SIDE_CLIENT && !hold(l)) { /* without it nobody would believe our claims */
    bertha_close_hidden(l->fd);
    bertha_close_hidden(l->mailbox);
    if (l->since == 0) {
      munmap(l->base, l->size);
    }
    no_link(l);
    return NULL;
  }
  return l;
}

static struct link *map_link(int fd, int mailbox, const struct bertha_link_reply *reply, int side) {
  struct link *l = prepare_link(fd, mailbox, reply, side);
  return l != NULL ? enlist(l) : NULL;
}

struct link *link_adopt(int fd, int side, const struct bertha_link_reply *reply) {
  return map_link(fd, -1, reply, side);
}

void link_drop(struct link *link) {
  if (bertha_lock(&mapped.lock)) {
    struct link **place = &mapped.links;
    while (*place != NULL && *place != link) {
      place = &(*place)->next;
    }
    if (*place == link) {
      *place = link->next;
    }
    bertha_unlock(&mapped.lock);
  }
  munmap(link->base, link->size);
  bertha_close_hidden(link->fd);
  bertha_close_hidden(link->bell_fd);
  for (uint32_t slot = 0; link->bells != NULL && slot < link->slot_count; slot++) {
    bertha_close_hidden(link->bells[slot]);
  }
  free(link->bells);
  free(link->free_slots);
  free(link);
}

uint8_t *link_ring(const struct link *link, uint32_t slot, int side) {
  return link->base + link->ring_offset + ((size_t)slot * 2 + (size_t)side) * link->ring_max;
}

struct bertha_loan *link_loan(const struct link *link, uint32_t slot) {
  return link->loans != NULL ? (struct bertha_loan *)(void *)(link->loans + (size_t)slot * BERTHA_LOAN_STRIDE)
                             : NULL;
}

static uint32_t refused(uint64_t listener) {
  for (unsigned i = 0; i < REFUSALS; i++) {
    if (refusals[i].listener == listener && bertha_now_ns() < refusals[i].until) {
      return refusals[i].why;
    }
  }
  return 0;
}

static void remember_refusal(uint64_t listener, uint32_t why) {
  unsigned i = next_refusal++ % REFUSALS;
  refusals[i].listener = listener;
  refusals[i].why = why;
  refusals[i].until = bertha_now_ns() + refusal_ns;
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
      trim_slot(l, s);
    }
  }
}

/* `c` has the link from here on, or it is one more of its pairs: it is not retired under its hands. */
static struct link *with_room(struct conn *c, uint64_t listener) {
  if (!bertha_lock(&mapped.lock)) {
    return NULL;
  }
  struct link *l = mapped.links;
  for (; l != NULL; l = l->next) {
    if (l->listener == listener && l->side == BERTHA_SIDE_CLIENT && l->owner_pid == bertha.pid) {
      if (!has_room(l) && bertha_lock(&l->lock)) {
        sweep(l);
        bertha_unlock(&l->lock);
      }
      if (has_room(l)) {
        break;
      }
    }
  }
  if (l != NULL && c != NULL) {
    c->link = l;
  } else if (l != NULL) {
    atomic_fetch_add(&l->pairs, 1);
  }
  bertha_unlock(&mapped.lock);
  return l;
}

static void link_not_had(uint64_t listener, uint32_t index) {
  struct bertha_link body = {.listener = listener, .index = index};
  agent_call(BERTHA_OP_UNLINK, &body, sizeof body, NULL, 0, NULL, 0, NULL, 0);
}

static uint32_t ask_for_link(const struct bertha_connect *body, struct link **l) {
  struct bertha_link_reply reply = {.listener = 0};
  int fds[3]; /* link, claims, mailbox */
  uint32_t why = agent_call(BERTHA_OP_CONNECT, body, sizeof *body, NULL, 0, &reply, sizeof reply, fds, 3);
  *l = NULL;
  if (why == BERTHA_WHY_NO_DESCRIPTOR && reply.listener != 0) { /* the agent has made it */
    link_not_had(reply.listener, reply.index);
  }
  if (why != 0) {
    return why;
  }
  struct listener *to = NULL;
  if (fds[0] >= 0 && fds[1] >= 0) {
    to = listener_add(reply.listener, directory_generation(), fds[1], false);
    fds[1] = -1;
  }
  if (to != NULL) {
    *l = prepare_link(fds[0], fds[2], &reply, BERTHA_SIDE_CLIENT);
    fds[0] = fds[2] = -1;
  }
  if (*l != NULL) {
    (*l)->claims = to->claims;
    memcpy((*l)->addr, body->server_addr, 16);
    (*l)->port = body->server_port;
  }
  for (int i = 0; i < 3; i++) {
    if (fds[i] >= 0) {
      QUIET(close)(fds[i]);
    }
  }
  *l = *l != NULL ? enlist(*l) : NULL;
  if (to != NULL) {
    listener_unpin(to);
  }
  if (*l == NULL) {
    link_not_had(reply.listener, reply.index);
  }
  return *l != NULL ? 0 : BERTHA_WHY_NO_MEMORY;
}

struct link *link_to(struct conn *c, uint64_t listener, const uint8_t addr[16], uint16_t port, uint64_t netns,
                     uint32_t *why) {
  struct link *l = with_room(c, listener);
  if (l != NULL) {
    return l;
  }
  *why = refused(listener);
  if (*why != 0) {
    return NULL;
  }
  links_retire(false);
  struct bertha_connect body = {.listener = listener, .server_port = port, .netns = netns};
  memcpy(body.server_addr, addr, 16);
  *why = ask_for_link(&body, &l);
  bool no_room =
      *why == BERTHA_WHY_LINK_FULL || *why == BERTHA_WHY_NO_DESCRIPTOR || *why == BERTHA_WHY_NO_MEMORY;
  if (no_room && links_retire(true) > 0) { /* what has been idle makes room */
    *why = ask_for_link(&body, &l);
  }
  if (l == NULL) {
    remember_refusal(listener, *why);
    return NULL;
  }
  l = with_room(c, listener);
  *why = l != NULL ? 0 : BERTHA_WHY_LINK_FULL; /* other threads have taken all of it */
  return l;
}

static struct link *fetched(uint64_t listener, uint32_t index) {
  struct link *l = NULL;
  if (bertha_lock(&mapped.lock)) {
    l = mapped.links;
    while (l != NULL && (l->listener != listener || l->index != index || l->side != BERTHA_SIDE_SERVER)) {
      l = l->next;
    }
    bertha_unlock(&mapped.lock);
  }
  return l;
}

struct link *link_fetch(struct listener *listener, uint32_t index, uint32_t *why) {
  struct link *l = fetched(listener->id, index);
  if (l != NULL) {
    return l;
  }
  links_retire(false);
  struct bertha_link body = {.listener = listener->id, .index = index};
  struct bertha_link_reply reply;
  int fds[2]; /* link, mailbox */
  *why = agent_call(BERTHA_OP_LINK, &body, sizeof body, NULL, 0, &reply, sizeof reply, fds, 2);
  if (*why != 0 || fds[0] < 0) {
    return NULL;
  }
  *why = BERTHA_WHY_NO_MEMORY; /* unless */
  l = map_link(fds[0], fds[1], &reply, BERTHA_SIDE_SERVER);
  if (bertha_lock(&mapped.lock)) {
    link_hold_again(listener->id, index);
    bertha_unlock(&mapped.lock);
  }
  return l;
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
    trim_slot(l, (uint32_t)s);
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

void slot_leave(const struct link *l, uint32_t slot, int side) {
  struct bertha_watch *watch = l->slots[slot].watch;
  if (atomic_load_explicit(&watch[1 - side].done,
                           memory_order_acquire)) { /* nobody takes it before our word */
    trim_slot(l, slot);
  }
  atomic_store_explicit(&watch[side].done, 1, memory_order_release);
}

/* The client's side will not touch the slot any more.  If the server is yet to leave it, it is looked at again at the
 * next claim, or found by a later sweep; so it is by the process that took it when another one is the last to go.
 * The slot counts as left only under the lock: a sweep would find it a second time. */
void slot_give_back(struct link *l, uint32_t slot) {
  struct bertha_watch *watch = l->slots[slot].watch;
  if (l->owner_pid != bertha.pid || l->side != BERTHA_SIDE_CLIENT || !bertha_lock(&l->lock)) {
    slot_leave(l, slot, BERTHA_SIDE_CLIENT);
    return;
  }
  uint32_t state = BERTHA_SLOT_STATE(atomic_load(&l->slots[slot].state));
  atomic_store_explicit(&watch[BERTHA_SIDE_CLIENT].done, 1, memory_order_release);
  if (state == BERTHA_SLOT_ATTACHED &&
      !atomic_load_explicit(&watch[BERTHA_SIDE_SERVER].done, memory_order_acquire)) {
    l->left = (int)slot;
  } else if (l->free_count < l->slot_count) {
    trim_slot(l, slot);
    l->free_slots[l->free_count++] = (uint16_t)slot;
  }
  bertha_unlock(&l->lock);
}

bool link_left_out(const struct link *link, char *to, size_t size) {
  to[0] = '\0';
  if (link == NULL || !bertha_lock(&mapped.lock)) {
    return false;
  }
  const struct link *l = mapped.links;
  while (l != NULL && l != link) {
    l = l->next;
  }
  if (l != NULL) { /* the other side may write there as well */
    uint32_t at = *(const volatile uint32_t *)&l->header->left_out_offset;
    if (at != 0 && l->size >= BERTHA_LEFT_OUT_SIZE && at <= l->size - BERTHA_LEFT_OUT_SIZE) {
      size_t n = size - 1 < BERTHA_LEFT_OUT_SIZE ? size - 1 : BERTHA_LEFT_OUT_SIZE;
      memcpy(to, l->base + at, n);
      to[n] = '\0';
    }
  }
  bertha_unlock(&mapped.lock);
  return to[0] != '\0';
}
