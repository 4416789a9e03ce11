#include "unixmail.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

struct letter {
  uint32_t slot; /* ANY: made ahead */
  uint32_t use;
  uint64_t number;
};
#define ANY UINT32_MAX

extern void bertha_close_hidden(int fd);

static int post(struct link *l, const struct letter *letter, int fd) {
  union {
    struct cmsghdr align;
    char space[CMSG_SPACE(sizeof(int))];
  } control = {.space = {0}};
  struct iovec part = {(void *)(uintptr_t)letter, sizeof *letter};
  struct msghdr msg = {.msg_iov = &part,
                       .msg_iovlen = 1,
                       .msg_control = control.space,
                       .msg_controllen = sizeof control.space};
  struct cmsghdr *head = CMSG_FIRSTHDR(&msg);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(head), &fd, sizeof(int));
  ssize_t n = QUIET(sendmsg)(l->mailbox, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
  return n == (ssize_t)sizeof *letter ? 0 : n < 0 ? errno : EPROTO;
}

int mail_post(struct link *l, uint32_t slot, uint32_t use, int fd) {
  struct letter letter = {slot, use, 0};
  return post(l, &letter, fd);
}

static uint32_t present_use(const struct link *l, uint32_t slot) {
  return BERTHA_SLOT_USE(atomic_load(&l->slots[slot].state));
}

static void let_go(struct unix_mail *m) {
  if (m->room > 0) {
    bertha_close_hidden(m->room);
    m->room = -1;
  }
}

static void expect_no_more(struct link *l, uint32_t slot) {
  struct unix_mail *m = &l->mail[slot];
  let_go(m);
  l->mail_expected -= m->room != 0;
  m->room = 0;
}

bool mail_expect(struct link *l, uint32_t slot, bool room) {
  if (!bertha_lock(&l->lock)) {
    return false;
  }
  expect_no_more(l, slot);
  int kept = room ? bertha_hidden_copy(l->mailbox) : -1;
  l->mail[slot].room = kept >= 0 ? kept : -1;
  l->mail_expected++;
  bertha_unlock(&l->lock);
  return kept >= 0 || !room;
}

void mail_expect_no_more(struct link *l, uint32_t slot) {
  if (bertha_lock(&l->lock)) {
    expect_no_more(l, slot);
    bertha_unlock(&l->lock);
  }
}

bool mail_waits(const struct link *l) {
  struct pollfd box = {.fd = l->mailbox, .events = POLLIN};
  return QUIET(poll)(&box, 1, 0) > 0 && (box.revents & POLLIN);
}

/* With the lock held: what came for the slot's present claim; what came for an earlier one goes. */
static int take_from(struct link *l, uint32_t slot) {
  struct unix_mail *m = &l->mail[slot];
  int fd = m->fd > 0 ? m->fd : -1;
  m->fd = 0;
  if (fd >= 0 && m->use != present_use(l, slot)) {
    bertha_close_hidden(fd);
    fd = -1;
  }
  return fd;
}

/* The next letter and its descriptor, -1: none; or -1.  `*short_of`: there was one, and no number for it. */
static ssize_t next_letter(struct link *l, struct letter *letter, int *fd, bool *short_of, int flags) {
  union {
    struct cmsghdr align;
    char space[CMSG_SPACE(sizeof(int))]; /* its alignment leaves room for a second one */
  } control;
  struct iovec part = {letter, sizeof *letter};
  struct msghdr msg = {.msg_iov = &part,
                       .msg_iovlen = 1,
                       .msg_control = control.space,
                       .msg_controllen = sizeof control.space};
  ssize_t n = QUIET(recvmsg)(l->mailbox, &msg, flags | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  *fd = -1;
  *short_of = false;
  if (n < 0) {
    return n;
  }
  struct cmsghdr *head = CMSG_FIRSTHDR(&msg);
  size_t count =
      head != NULL && head->cmsg_type == SCM_RIGHTS ? (head->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;
  for (size_t i = 0; i < count; i++) {
    int got;
    memcpy(&got, CMSG_DATA(head) + i * sizeof got, sizeof got);
    if (count == 1) {
      *fd = got;
    } else {
      REAL(close)(got); /* no letter of ours has more than one */
    }
  }
  *short_of = count == 0 && (msg.msg_flags & MSG_CTRUNC);
  return n;
}

/* The end itself takes the room that was kept for it. */
static int hide_in_room(struct link *l, uint32_t slot, int fd) {
  struct unix_mail *m = &l->mail[slot];
  int room = m->room;
  if (room > 0 && REAL(dup3)(fd, room, O_CLOEXEC) == room) {
    m->room = -1;
    QUIET(close)(fd);
    fd = room;
  } else {
    fd = bertha_hide_fd(fd);
  }
  expect_no_more(l, slot);
  return fd;
}

/* With the lock held: one letter out of the mailbox, to where it belongs.  False: there is none.  While ends are expected it
 * is only looked at first: the kernel would throw a descriptor away for which it has no number. */
static bool read_letter(struct link *l) {
  struct letter letter = {0};
  int fd;
  bool short_of;
  bool careful = l->mail_expected > 0;
  ssize_t n = next_letter(l, &letter, &fd, &short_of, careful ? MSG_PEEK : 0);
  bool whole = n == sizeof letter;
  bool ours = whole && letter.slot < l->slot_count && letter.use == present_use(l, letter.slot);
  if (UNLIKELY(short_of) && ours && l->mail[letter.slot].room != 0) {
    let_go(&l->mail[letter.slot]);
    struct letter same = {0};
    next_letter(l, &same, &fd, &short_of, MSG_PEEK);
    if (fd < 0) {
      return false; /* another thread has taken the number: it stays there until there is one */
    }
  }
  if (careful && n >= 0) {
    char byte;
    QUIET(recv)(l->mailbox, &byte, 1, MSG_DONTWAIT); /* off the mailbox, with its own reference */
  }
  if (fd < 0) {
    return n >= 0 && short_of; /* one that was made ahead can be done without */
  }
  if (whole && letter.slot == ANY && letter.number != 0 && l->spares.count < UNIX_SPARES) {
    l->spares.end[l->spares.count].number = letter.number;
    l->spares.end[l->spares.count++].fd = bertha_hide_fd(fd);
  } else if (ours) {
    bertha_close_hidden(take_from(l, letter.slot)); /* of an earlier claim, which nobody has fetched */
    l->mail[letter.slot].fd = hide_in_room(l, letter.slot, fd);
    l->mail[letter.slot].use = letter.use;
  } else {
    QUIET(close)(fd); /* for a connection that is over */
  }
  return true;
}

int mail_take(struct link *l, uint32_t slot) {
  if (l->mail == NULL || !bertha_lock(&l->lock)) {
    return -1;
  }
  int fd = take_from(l, slot);
  while (fd < 0 && read_letter(l)) {
    fd = take_from(l, slot);
  }
  bertha_unlock(&l->lock);
  return fd;
}

/* ---- made ahead ---------------------------------------------------------------------------------- */

static int take_out(struct unix_spares *s, uint32_t i, uint64_t *number) {
  int fd = s->end[i].fd;
  *number = s->end[i].number;
  s->count--;
  memmove(&s->end[i], &s->end[i + 1], (s->count - i) * sizeof s->end[0]);
  return fd;
}

int spare_fetch(struct link *l, uint64_t *number) {
  int fd = -1;
  if (l->mail == NULL) {
    return -1;
  }
  conn_books_begin(); /* a child that is just being made must find whole books to close what is its parent's */
  if (bertha_lock(&l->lock)) {
    /* All that there is: while a descriptor is on its way, every close of a unix socket has the kernel look for cycles
     * of them. */
    while (l->spares.count < UNIX_SPARES && read_letter(l)) {
    }
    if (l->spares.count > 0) {
      fd = take_out(&l->spares, 0, number);
    }
    bertha_unlock(&l->lock);
  }
  conn_books_end();
  return fd;
}

int spare_find(struct link *l, uint64_t number) {
  int fd = -1;
  if (number == 0) {
    return -1;
  }
  conn_books_begin();
  if (bertha_lock(&l->lock)) {
    for (uint32_t i = 0; i < l->spares.count && fd < 0; i++) {
      if (l->spares.end[i].number == number) {
        uint64_t same;
        fd = take_out(&l->spares, i, &same);
      }
    }
    bertha_unlock(&l->lock);
  }
  conn_books_end();
  return fd;
}

void spare_missed(struct link *l) {
  conn_books_begin();
  if (bertha_lock(&l->lock)) {
    l->spares.target += l->spares.target < UNIX_SPARES;
    if (l->spares.count ==
        UNIX_SPARES) { /* the other end of some may be lost with a claim that was given up */
      uint64_t number;
      bertha_close_hidden(take_out(&l->spares, 0, &number));
    }
    bertha_unlock(&l->lock);
  }
  conn_books_end();
}

/* Processes that share a listener post into one mailbox: their numbers must differ. */
static uint64_t new_number(void) {
  static _Atomic uint64_t base;
  static _Atomic int base_pid;
  static _Atomic uint64_t count;
  if (atomic_load(&base_pid) != bertha.pid) {
    uint64_t random = 0;
    if (getrandom(&random, sizeof random, GRND_NONBLOCK) != (ssize_t)sizeof random) {
      random = (uint64_t)bertha_now_ns() * 0x9e3779b97f4a7c15u ^ (uint64_t)bertha.pid << 40;
    }
    atomic_store(&base, random);
    atomic_store(&base_pid, bertha.pid);
  }
  uint64_t number = atomic_load(&base) + atomic_fetch_add(&count, 1);
  return number != 0 ? number : atomic_load(&base) + atomic_fetch_add(&count, 1);
}

void spares_fill(struct link *l) {
  int saved = errno;
  int pair[2];
  if (l->mailbox < 0 || l->spares.count >= l->spares.target) {
    return;
  }
  conn_books_begin();
  bool locked = bertha_lock(&l->lock);
  while (locked && l->spares.count < l->spares.target &&
         REAL(socketpair)(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0) {
    struct letter letter = {ANY, 0, new_number()};
    bool posted = post(l, &letter, pair[1]) == 0;
    QUIET(close)(pair[1]);
    if (!posted) {
      QUIET(close)(pair[0]);
      break;
    }
    l->spares.end[l->spares.count].number = letter.number;
    l->spares.end[l->spares.count++].fd = bertha_hide_fd(pair[0]);
  }
  if (locked) {
    bertha_unlock(&l->lock);
  }
  conn_books_end();
  errno = saved;
}

/* ---- the process as a whole ----------------------------------------------------------------------- */

void mail_forget(struct link *l) {
  for (uint32_t i = 0; i < l->spares.count; i++) {
    bertha_close_hidden(l->spares.end[i].fd);
  }
  l->spares.count = 0;
  for (uint32_t i = 0; l->mail != NULL && i < l->slot_count; i++) {
    if (l->mail[i].fd > 0) {
      bertha_close_hidden(l->mail[i].fd);
      l->mail[i].fd = 0;
    }
    expect_no_more(l, i);
  }
}

void mail_fd_moved(struct link *l, int from, int to) {
  for (uint32_t i = 0; i < l->spares.count; i++) {
    l->spares.end[i].fd = l->spares.end[i].fd == from ? to : l->spares.end[i].fd;
  }
  for (uint32_t i = 0; l->mail != NULL && i < l->slot_count; i++) {
    l->mail[i].fd = l->mail[i].fd == from ? to : l->mail[i].fd;
    l->mail[i].room = l->mail[i].room == from ? to : l->mail[i].room;
  }
}
