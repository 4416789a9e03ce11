#include "carriers.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "agentc.h"
#include "carried.h"
#include "fsize.h"
#include "hop.h"
#include "plans.h"
#include "wait.h"

enum {
  CARRIER_PATIENCE_MS = 200, /* for room in a carrier's queue */
  CARRIERS = 3,
};

extern void bertha_close_hidden(int fd);

static struct {
  _Atomic uint32_t lock;
  struct carrier {
    int fd;  /* hidden; 0: none */
    int pid; /* the process that got it: a forked child gets its own, so that its end is seen */
    uint64_t generation;
    bool rings; /* it can be reached over them */
    struct link *links[BERTHA_CARRIER_LINKS];
    uint32_t link_count;
  } carriers[CARRIERS];
  int status_fd;
  struct bertha_carrier_status *_Atomic statuses;
} here = {.status_fd = -1};

void carried_after_fork(void) {
  atomic_store(&here.lock, 0);
  plans_after_fork();
}

void carried_fd_moved(int from, int to) {
  for (int i = 0; i < CARRIERS; i++) {
    if (here.carriers[i].fd == from) {
      here.carriers[i].fd = to;
    }
  }
  if (here.status_fd == from) {
    here.status_fd = to;
  }
}

struct bertha_carrier_status *carrier_statuses(void) {
  return atomic_load_explicit(&here.statuses, memory_order_acquire);
}

/* One array for this process and those forked from it, whose connections have the same numbers. */
bool carrier_open_statuses(void) {
  if (carrier_statuses() != NULL) {
    return true;
  }
  size_t size = (size_t)BERTHA_CONNS * sizeof(struct bertha_carrier_status);
  int fd = REAL(memfd_create)("bertha-carried", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) {
    return false;
  }
  void *p = MAP_FAILED;
  if (fsize_make(fd, size) == 0 && REAL(fcntl)(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0) {
    p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  }
  if (p == MAP_FAILED) {
    QUIET(close)(fd);
    return false;
  }
  madvise(p, size, MADV_DONTDUMP);
  here.status_fd = bertha_hide_fd(fd);
  atomic_store_explicit(&here.statuses, p, memory_order_release);
  return true;
}

bool carrier_tell(int to, const void *message, size_t size, const int *fds, size_t count) {
  union {
    struct cmsghdr align;
    char space[CMSG_SPACE(3 * sizeof(int))];
  } control = {.space = {0}};
  struct iovec part = {(void *)(uintptr_t)message, size};
  struct msghdr msg = {.msg_iov = &part,
                       .msg_iovlen = 1,
                       .msg_control = control.space,
                       .msg_controllen = CMSG_SPACE(count * sizeof(int))};
  struct cmsghdr *head = CMSG_FIRSTHDR(&msg);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(count * sizeof(int));
  memcpy(CMSG_DATA(head), fds, count * sizeof(int));
  for (int tries = 0; tries < 2; tries++) {
    ssize_t n = QUIET(sendmsg)(to, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n >= 0 || errno != EAGAIN) {
      return n == (ssize_t)size;
    }
    struct pollfd p = {.fd = to, .events = POLLOUT};
    QUIET(poll)(&p, 1, CARRIER_PATIENCE_MS);
  }
  return false;
}

/* With the lock held. */
static bool open_carrier(uint32_t which) {
  struct carrier *k = &here.carriers[which];
  if (k->fd > 0) {
    bertha_close_hidden(k->fd);
    k->fd = 0;
  }
  struct bertha_carrier_request body = {.carrier = which};
  struct bertha_carrier_request reply = {.rings = 0};
  int fd = -1;
  if (!carrier_open_statuses() ||
      agent_call(BERTHA_OP_CARRIER, &body, sizeof body, &here.status_fd, 1, &reply, sizeof reply, &fd, 1) !=
          0 ||
      fd < 0) {
    return false;
  }
  struct bertha_carrier_hello hello = {.magic = BERTHA_CARRIER_MAGIC,
                                       .version = BERTHA_CARRIER_VERSION,
                                       .kind = BERTHA_CARRIER_HELLO,
                                       .pid = (uint32_t)bertha.pid,
                                       .status_count = BERTHA_CONNS};
  if (!carrier_tell(fd, &hello, sizeof hello, &here.status_fd, 1)) {
    QUIET(close)(fd);
    return false;
  }
  k->fd = bertha_hide_fd(fd);
  k->rings = reply.rings != 0;
  k->link_count = 0; /* those before serve the connections that they have */
  k->pid = bertha.pid;
  k->generation = directory_generation();
  return true;
}

/* What the carrier is to keep to: the program's own bound, where anybody has said something about that. */
static uint32_t told_bound(const struct link *l) {
  bool said = bertha.spin_given || bertha.spin_ns == 0 || l->plan.spin_us != UINT32_MAX;
  return said ? (uint32_t)(link_spin_bound(l) / 1000) : UINT32_MAX;
}

static bool send_link(const struct carrier *k, const struct link *l, uint32_t index) {
  struct bertha_carrier_link message = {.magic = BERTHA_CARRIER_MAGIC,
                                        .version = BERTHA_CARRIER_VERSION,
                                        .kind = BERTHA_CARRIER_LINK,
                                        .number = k->link_count,
                                        .index = index,
                                        .spin_us = told_bound(l)};
  int fds[2] = {l->fd, l->bell_fd};
  return carrier_tell(k->fd, &message, sizeof message, fds, l->apart ? 1 : 2);
}

static struct place place_in(struct link *l, uint32_t number, int slot) {
  int bell = l->apart && slot >= 0 ? hop_bell(l, (uint32_t)slot) : -1;
  if (slot >= 0 && l->apart && bell < 0) {
    slot_give_back(l, (uint32_t)slot);
    return (struct place){.why = BERTHA_WHY_NO_DESCRIPTOR};
  }
  return (struct place){.link = l, .number = number, .slot = slot, .bell = bell};
}

/* Both ends spin for a link as a whole, so connections whose policies bound that differently are in different ones.
 * `closer`: one that is bounded closer will do. */
static bool suits(const struct link *l, uint32_t spin_us, bool closer) {
  return l->apart || l->plan.spin_us == spin_us || (closer && l->plan.spin_us < spin_us);
}

/* With the lock held. */
static struct place take_place(struct carrier *k, uint32_t spin_us) {
  if (!k->rings) {
    return (struct place){.why = BERTHA_WHY_NO_RINGS};
  }
  bool all_made = k->link_count == BERTHA_CARRIER_LINKS;
  for (int closer = 0; closer <= (int)all_made; closer++) {
    for (uint32_t i = k->link_count; i > 0; i--) {
      struct link *l = k->links[i - 1];
      int slot = suits(l, spin_us, closer != 0) ? slot_take(l) : -1;
      if (slot >= 0) {
        return place_in(l, i - 1, slot);
      }
    }
  }
  if (all_made) {
    return (struct place){.why = BERTHA_WHY_LINK_FULL};
  }
  uint32_t index;
  struct link *l = hop_make(k != &here.carriers[BERTHA_CARRIER_NATIVE], spin_us, &index);
  if (l == NULL) {
    return (struct place){.why = BERTHA_WHY_NO_MEMORY};
  }
  if (!send_link(k, l, index)) {
    link_drop(l);
    return (struct place){.why = BERTHA_WHY_NO_CARRIER};
  }
  k->links[k->link_count++] = l;
  return place_in(l, k->link_count - 1, slot_take(l));
}

/* One message.  With the lock held. */
static bool send_carry(struct carrier *k, const struct bertha_carrier_carry *head, const void *plan,
                       const int fds[2], struct place *place) {
  struct bertha_carrier_carry_ring ring = {.carry = *head};
  uint8_t message[sizeof ring + BERTHA_CARRIER_PLAN_MAX];
  size_t size = sizeof *head;
  if (place->link != NULL) {
    *place = take_place(k, place->spin_us);
  }
  if (place->link != NULL && place->slot < 0) {
    *place = (struct place){.why = BERTHA_WHY_LINK_FULL};
  }
  if (place->link != NULL) {
    hop_prepare(place->link, (uint32_t)place->slot);
    ring.carry.kind = BERTHA_CARRIER_CARRY_RING;
    ring.link = place->number;
    ring.slot = (uint32_t)place->slot;
    size = sizeof ring;
  }
  memcpy(message, &ring, size);
  memcpy(message + size, plan, head->plan_size);
  int given[3] = {fds[0], fds[1], place->bell};
  bool bell = place->link != NULL && place->bell >= 0;
  if (carrier_tell(k->fd, message, size + head->plan_size, given, bell ? 3 : 2)) {
    return true;
  }
  if (place->link != NULL) {
    slot_give_back(place->link, (uint32_t)place->slot);
  }
  return false;
}

bool carrier_carry(uint32_t which, const struct bertha_carrier_carry *head, const void *plan, int tcp,
                   int end, struct place *place) {
  int fds[2] = {tcp, end};
  if (which >= CARRIERS || !bertha_lock(&here.lock)) {
    return false;
  }
  struct carrier *k = &here.carriers[which];
  uint64_t generation = directory_generation();
  bool current = k->fd > 0 && k->pid == bertha.pid && (k->generation == generation || generation == 0);
  struct place wanted = *place;
  bool sent = current && send_carry(k, head, plan, fds, place);
  if (!sent && open_carrier(which)) {
    *place = wanted;
    sent = send_carry(k, head, plan, fds, place);
  }
  bertha_unlock(&here.lock);
  return sent;
}
