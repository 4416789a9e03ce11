#include "timers.h"

#include <limits.h>
#include <stddef.h>
#include <stdlib.h>

static struct timer **heap; /* from 1 */
static unsigned count, room;

static void put(unsigned place, struct timer *t) {
  heap[place] = t;
  t->place = place;
}

static void rise(struct timer *t, unsigned place) {
  while (place > 1 && heap[place / 2]->at > t->at) {
    put(place, heap[place / 2]);
    place /= 2;
  }
  put(place, t);
}

static void sink(struct timer *t, unsigned place) {
  for (unsigned child = 2 * place; child <= count; child = 2 * place) {
    if (child < count && heap[child + 1]->at < heap[child]->at) {
      child++;
    }
    if (heap[child]->at >= t->at) {
      break;
    }
    put(place, heap[child]);
    place = child;
  }
  put(place, t);
}

static void take_out(struct timer *t) {
  unsigned place = t->place;
  struct timer *last = heap[count--];
  t->place = 0;
  if (last != t) {
    rise(last, place);
    sink(last, last->place);
  }
}

bool timer_set(struct timer *t, int64_t at) {
  if (at == t->at && (at == 0) == (t->place == 0)) {
    return true;
  }
  if (at == 0) {
    if (t->place != 0) {
      take_out(t);
    }
    t->at = 0;
    return true;
  }
  if (t->place == 0 && count + 1 >= room) {
    unsigned more = room > 0 ? 2 * room : 64;
    struct timer **grown = realloc(heap, more * sizeof *heap);
    if (grown == NULL) {
      return false;
    }
    heap = grown;
    room = more;
  }
  unsigned place = t->place != 0 ? t->place : ++count;
  t->at = at;
  rise(t, place);
  sink(t, t->place);
  return true;
}

int timers_wait(int64_t now) {
  if (count == 0) {
    return -1;
  }
  int64_t left = heap[1]->at - now;
  int64_t ms = left > 0 ? (left + 999999) / 1000000 : 0;
  return ms < INT_MAX ? (int)ms : INT_MAX;
}

void timers_run(int64_t now) {
  for (unsigned left = count; left > 0 && count > 0 && heap[1]->at <= now; left--) {
    struct timer *t = heap[1];
    timer_set(t, 0);
    t->due(t->who);
  }
}
