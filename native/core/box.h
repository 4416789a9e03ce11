/* One direction of datagrams between two sockets of one host, in the memory of a slot's ring.
 *
 * The kernel's sockets stay, and carry whatever is not put here.  The order is kept by two counts of what went through
 * the kernel: the producer puts a datagram here only when all that it sent by the kernel has been taken, and sends by the
 * kernel only when nothing here is unread, or takes back what is.  It puts something here only while the consumer is
 * `awake`: who is about to sleep in the kernel takes that back and then looks here once more. */
#ifndef BERTHA_BOX_H
#define BERTHA_BOX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

enum { BOX_ITEMS = 64, BOX_ROOM = 2048 };
/* HELD: the consumer's program has been told that something is there, and so it stays. */
enum box_state { ITEM_EMPTY = 0, ITEM_FULL = 1, ITEM_TAKEN = 2, ITEM_HELD = 3 };

struct box_item {
  _Atomic uint32_t state;
  uint32_t size;
};

struct box {
  /* written by the consumer */
  _Atomic uint32_t awake; /* it looks here before it sleeps */
  uint32_t reserved;
  _Atomic uint64_t taken; /* datagrams of this producer that came by the kernel */
  uint8_t pad0[48];
  /* written by the producer */
  _Atomic uint64_t begun; /* sends by the kernel, since the claim */
  _Atomic uint64_t sent;  /* and how many of them are done: the kernel has those for the consumer */
  /* Until the claim is believed: box_sum() of the one that is sent next, and, in the upper half, which of them that is;
   * 0: one of several that are alike. */
  _Atomic uint64_t announced;
  uint8_t pad1[40];
  struct box_item item[BOX_ITEMS]; /* number n is item n % BOX_ITEMS */
  uint8_t data[BOX_ITEMS][BOX_ROOM];
};

void box_init(struct box *b);
uint32_t box_sum(const struct iovec *iov, int count, size_t size); /* FNV-1a; never 0 */

/* producer */
bool box_open(struct box *b); /* the consumer is awake, and has taken all that the kernel had */
/* Where the consumer has a map of what has changed. */
struct box_mark {
  _Atomic uint64_t *word; /* NULL: none */
  uint64_t bit;
};
/* False: no room, or the consumer may have fallen asleep: it is not there. */
bool box_put(struct box *b, uint32_t *tail, const struct iovec *iov, int count, size_t size,
             struct box_mark mark);
bool box_unread(struct box *b, uint32_t tail); /* the last one put can be taken back */
bool box_lies(struct box *b, uint32_t tail);   /* it is there, and may be held */
/* Takes the last one back; its size, -1: there is none that is unread.  Its bytes stay at `at` until the next box_put(). */
int box_take_back(struct box *b, uint32_t *tail, const uint8_t **at);

/* consumer */
bool box_ready(struct box *b, uint32_t head);
bool box_hold(struct box *b, uint32_t head); /* false: there is none, or it has just been taken back */
void box_let_go(struct box *b, uint32_t head);
/* The size of the next one, of which as much is copied as there is room for; -1: none.  `peek`: it stays, and is held. */
int box_take(struct box *b, uint32_t *head, const struct iovec *iov, int count, bool peek);

#endif
