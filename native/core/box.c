#include "box.h"

#include <string.h>

void box_init(struct box *b) {
  atomic_store(&b->awake, 0);
  atomic_store(&b->taken, 0);
  atomic_store(&b->begun, 0);
  atomic_store(&b->sent, 0);
  atomic_store(&b->announced, 0);
  for (unsigned i = 0; i < BOX_ITEMS; i++) {
    atomic_store_explicit(&b->item[i].state, ITEM_EMPTY, memory_order_relaxed);
  }
}

uint32_t box_sum(const struct iovec *iov, int count, size_t size) {
  uint32_t h = 2166136261u ^ (uint32_t)size;
  for (int i = 0; i < count && size > 0; i++) {
    const uint8_t *p = iov[i].iov_base;
    size_t n = iov[i].iov_len < size ? iov[i].iov_len : size;
    for (size_t k = 0; k < n; k++) {
      h = (h ^ p[k]) * 16777619u;
    }
    size -= n;
  }
  return h != 0 ? h : 1;
}

bool box_open(struct box *b) {
  return atomic_load_explicit(&b->awake, memory_order_acquire) != 0 &&
         atomic_load_explicit(&b->taken, memory_order_acquire) >=
             atomic_load_explicit(&b->begun, memory_order_relaxed);
}

static struct box_item *item_at(struct box *b, uint32_t number) {
  return &b->item[number % BOX_ITEMS];
}

static void copy_in(uint8_t *to, const struct iovec *iov, int count) {
  for (int i = 0; i < count; i++) {
    if (iov[i].iov_len > 0) {
      memcpy(to, iov[i].iov_base, iov[i].iov_len);
      to += iov[i].iov_len;
    }
  }
}

bool box_unread(struct box *b, uint32_t tail) {
  return atomic_load_explicit(&item_at(b, tail - 1)->state, memory_order_acquire) == ITEM_FULL;
}

/* Asleep already, the consumer finds what we have put only if it has an older one to come back for: then it has not slept
 * since that was put, and looks once more before it does. */
bool box_put(struct box *b, uint32_t *tail, const struct iovec *iov, int count, size_t size,
             struct box_mark mark) {
  struct box_item *it = item_at(b, *tail);
  if (size > BOX_ROOM || atomic_load_explicit(&it->state, memory_order_acquire) != ITEM_EMPTY) {
    return false;
  }
  copy_in(b->data[*tail % BOX_ITEMS], iov, count);
  it->size = (uint32_t)size;
  atomic_store_explicit(&it->state, ITEM_FULL, memory_order_release);
  atomic_thread_fence(memory_order_seq_cst);
  if (mark.word != NULL && (atomic_load(mark.word) & mark.bit) == 0) {
    atomic_fetch_or(mark.word, mark.bit);
    atomic_thread_fence(memory_order_seq_cst);
  }
  if (atomic_load(&b->awake) == 0 && !box_unread(b, *tail)) {
    uint32_t full = ITEM_FULL;
    if (atomic_compare_exchange_strong(&it->state, &full, ITEM_EMPTY)) {
      return false;
    }
  }
  ++*tail;
  return true;
}

int box_take_back(struct box *b, uint32_t *tail, const uint8_t **at) {
  struct box_item *it = item_at(b, *tail - 1);
  uint32_t full = ITEM_FULL;
  if (!atomic_compare_exchange_strong(&it->state, &full, ITEM_EMPTY)) {
    return -1;
  }
  uint32_t size = it->size; /* the other side may write there: checked once, and then used */
  *at = b->data[--*tail % BOX_ITEMS];
  return (int)(size < BOX_ROOM ? size : BOX_ROOM);
}

static bool is_there(uint32_t state) {
  return state == ITEM_FULL || state == ITEM_HELD;
}

bool box_ready(struct box *b, uint32_t head) {
  return is_there(atomic_load_explicit(&item_at(b, head)->state, memory_order_acquire));
}

bool box_lies(struct box *b, uint32_t tail) {
  return is_there(atomic_load_explicit(&item_at(b, tail - 1)->state, memory_order_acquire));
}

/* Without it, what poll(2) has told of may be on its way by the kernel when the program asks for it: its producer takes back what
 * it finds unread when the consumer seems to sleep, or for long. */
bool box_hold(struct box *b, uint32_t head) {
  uint32_t state = ITEM_FULL;
  return atomic_compare_exchange_strong(&item_at(b, head)->state, &state, ITEM_HELD) || state == ITEM_HELD;
}

void box_let_go(struct box *b, uint32_t head) {
  uint32_t held = ITEM_HELD;
  atomic_compare_exchange_strong(&item_at(b, head)->state, &held, ITEM_FULL);
}

int box_take(struct box *b, uint32_t *head, const struct iovec *iov, int count, bool peek) {
  struct box_item *it = item_at(b, *head);
  uint32_t state = atomic_load_explicit(&it->state, memory_order_acquire);
  if (!is_there(state) ||
      !(peek ? box_hold(b, *head) : atomic_compare_exchange_strong(&it->state, &state, ITEM_TAKEN))) {
    return -1;
  }
  uint32_t size = it->size; /* the other side may write there: checked once, and then used */
  size = size < BOX_ROOM ? size : BOX_ROOM;
  const uint8_t *from = b->data[*head % BOX_ITEMS];
  size_t left = size;
  for (int i = 0; i < count && left > 0; i++) {
    size_t n = iov[i].iov_len < left ? iov[i].iov_len : left;
    if (n > 0) {
      memcpy(iov[i].iov_base, from, n);
    }
    from += n;
    left -= n;
  }
  if (!peek) {
    atomic_store_explicit(&it->state, ITEM_EMPTY, memory_order_release);
    ++*head;
  }
  return (int)size;
}
