/* Links: a header is believed only if it fits, slots are taken once and come back once. */
#include "../core/link.c" /* for what is static there */

#include "rig.h"

#include <pthread.h>

#include <cmocka.h>

enum { SLOTS = 8, RING = 4096, DESCRIPTORS = 4096 };

struct change {
  size_t offset;
  uint64_t value;
  int size;
};
#define CHANGE(field, value)                                                                                 \
  {                                                                                                          \
    offsetof(struct bertha_link_header, field), (uint64_t)(value),                                           \
        sizeof(((struct bertha_link_header *)0)->field)                                                      \
  }

static void sound_headers_are_taken(void **state) {
  (void)state;
  struct bertha_link_header h, copy;
  for (uint32_t slots = 1; slots <= BERTHA_LINK_SLOTS; slots *= 4) {
    rig_header(&h, slots, RING);
    assert_true(header_copy(&copy, &h, h.total_size, 7, 1));
    assert_false(header_copy(&copy, &h, h.total_size - 1, 7, 1)); /* the last ring does not fit */
    assert_false(header_copy(&copy, &h, h.total_size, 8, 1));
    assert_false(header_copy(&copy, &h, h.total_size, 7, 2));
  }
}

static void lying_headers_are_refused(void **state) {
  (void)state;
  static const struct change changes[] = {
      CHANGE(magic, 0),
      CHANGE(version, 99),
      CHANGE(slot_count, 0),
      CHANGE(slot_count, BERTHA_LINK_SLOTS + 1),
      CHANGE(slot_count, 1 << 31),
      CHANGE(slot_count, SLOTS + 1),
      CHANGE(ring_max, 0),
      CHANGE(ring_max, 2048),
      CHANGE(ring_max, RING + 1),
      CHANGE(ring_max, RING * 2),
      CHANGE(ring_max, BERTHA_RING_MAX * 2),
      CHANGE(ring_max, 1u << 31),
      CHANGE(dirty_offset[0], UINT64_MAX),
      CHANGE(dirty_offset[1], UINT64_MAX - 63),
      CHANGE(dirty_offset[0], 4),
      CHANGE(sleeper_offset[0], (uint64_t)1 << 63),
      CHANGE(sleeper_offset[1], 1),
      CHANGE(sleeper_offset[1], UINT64_MAX - 127),
      CHANGE(slot_offset, UINT64_MAX - 63),
      CHANGE(slot_offset, 8),
      CHANGE(ring_offset, UINT64_MAX - 4095),
      CHANGE(ring_offset, 64),
      CHANGE(ring_offset, (uint64_t)1 << 40),
  };
  for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
    struct bertha_link_header h, copy;
    rig_header(&h, SLOTS, RING);
    size_t size = h.total_size;
    memcpy((uint8_t *)&h + changes[i].offset, &changes[i].value, (size_t)changes[i].size);
    assert_false(header_copy(&copy, &h, size, 7, 1));
  }
}

static int memfd_of(const struct bertha_link_header *h, size_t size, int seals) {
  return rig_memory((const void *)h, sizeof *h, size, seals);
}

static void only_sealed_memory_is_mapped(void **state) {
  (void)state;
  struct bertha_link_header h;
  struct bertha_link_reply reply = {.listener = 7, .index = 1, .plan = {.implementation = BERTHA_IMPL_SHM}};
  rig_header(&h, SLOTS, RING);
  int before = rig_descriptors(DESCRIPTORS);
  assert_null(map_link(memfd_of(&h, h.total_size, F_SEAL_GROW), -1, &reply, BERTHA_SIDE_SERVER));
  assert_null(map_link(memfd_of(&h, 64, F_SEAL_SHRINK), -1, &reply, BERTHA_SIDE_SERVER));
  assert_null(map_link(memfd_of(&h, h.total_size - 4096, F_SEAL_SHRINK), -1, &reply, BERTHA_SIDE_CLIENT));
  assert_null(map_link(open("/dev/null", O_RDWR | O_CLOEXEC), -1, &reply, BERTHA_SIDE_SERVER));
  assert_int_equal(rig_descriptors(DESCRIPTORS), before);
  struct link *l = map_link(memfd_of(&h, h.total_size, F_SEAL_SHRINK), -1, &reply, BERTHA_SIDE_CLIENT);
  assert_non_null(l);
  assert_true(link_held(l));
  /* what the other side writes now changes nothing */
  uint8_t *ring = link_ring(l, SLOTS - 1, 1);
  memset((uint8_t *)l->header + offsetof(struct bertha_link_header, dirty_offset), 0xff,
         sizeof h - offsetof(struct bertha_link_header, dirty_offset));
  assert_ptr_equal(link_ring(l, SLOTS - 1, 1), ring);
  memset(ring, 1, RING);
}

static void ring_sizes_that_are_none_are_the_default(void **state) {
  (void)state;
  static const uint32_t sizes[] = {1, 255, 3000, UINT32_MAX, 0};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    struct bertha_link_header h;
    struct bertha_link_reply reply = {.listener = 7, .index = 1, .plan = {.ring_size = sizes[i]}};
    rig_header(&h, SLOTS, RING);
    struct link *l = map_link(memfd_of(&h, h.total_size, F_SEAL_SHRINK), -1, &reply, BERTHA_SIDE_SERVER);
    assert_non_null(l);
    assert_int_equal(l->plan.ring_size, 0);
  }
}

/* A link that a socket for datagrams looks for is not retired before it has made a pair there, nor is the record of one that has pairs
 * used again. */
static void what_is_looked_for_stays(void **state) {
  (void)state;
  struct bertha_link_header h;
  struct bertha_link_reply reply = {.listener = 9, .index = 1};
  struct bertha_claims_header claims;
  bertha.table = calloc(1, sizeof *bertha.table);
  bertha.table_ready = true;
  rig_header(&h, SLOTS, RING);
  h.listener = 9;
  struct link *l = map_link(memfd_of(&h, h.total_size, F_SEAL_SHRINK), -1, &reply, BERTHA_SIDE_CLIENT);
  assert_non_null(l);
  l->claims = &claims;
  uint32_t why = 0;
  uint8_t addr[16] = {0};
  assert_ptr_equal(link_to(NULL, 9, addr, 80, 1, &why), l);
  assert_int_equal(links_retire(true), 0);
  assert_false(atomic_load(&l->retired));
  atomic_fetch_sub(&l->pairs, 1);
  assert_int_equal(links_retire(true), 1);
  assert_true(atomic_load(&l->retired));
  l->since = 1;
  atomic_store(&l->pairs, 1);
  assert_null(old_link(l->size));
  atomic_store(&l->pairs, 0);
  static struct link *volatile taken; /* links are never freed: this one is nobody's any more */
  taken = old_link(l->size);
  assert_ptr_equal(taken, l);
  bertha.table_ready = false;
}

/* ---- slots --------------------------------------------------------------------------------------- */

static void attach(struct rig *r, int s) {
  uint32_t word = atomic_load(&r->link[0].slots[s].state);
  atomic_store(&r->link[0].slots[s].watch[BERTHA_SIDE_SERVER].done, 0);
  atomic_store(&r->link[0].slots[s].state, BERTHA_SLOT_WORD(BERTHA_SLOT_USE(word), BERTHA_SLOT_ATTACHED));
}

static void server_leaves(struct rig *r, int s) {
  atomic_store(&r->link[0].slots[s].watch[BERTHA_SIDE_SERVER].done, 1);
}

static void slots_are_taken_once(void **state) {
  (void)state;
  struct rig r;
  bool taken[SLOTS] = {false};
  rig_open(&r, SLOTS, RING, 0);
  for (int i = 0; i < SLOTS; i++) {
    int s = slot_take(&r.link[0]);
    assert_in_range(s, 0, SLOTS - 1);
    assert_false(taken[s]);
    taken[s] = true;
  }
  assert_int_equal(slot_take(&r.link[0]), -1);
  slot_give_back(&r.link[0], 5); /* never attached: free at once */
  assert_int_equal(slot_take(&r.link[0]), 5);
  assert_int_equal(slot_take(&r.link[0]), -1);
  rig_close(&r);
}

static void each_use_has_its_number(void **state) {
  (void)state;
  struct rig r;
  rig_open(&r, 1, RING, 0);
  uint32_t before = 0;
  for (int i = 0; i < 5; i++) {
    assert_int_equal(slot_take(&r.link[0]), 0);
    uint32_t use = BERTHA_SLOT_USE(atomic_load(&r.link[0].slots[0].state));
    assert_int_not_equal(use, before);
    before = use;
    slot_give_back(&r.link[0], 0);
  }
  rig_close(&r);
}

static void a_slot_waits_for_the_server(void **state) {
  (void)state;
  struct rig r;
  rig_open(&r, 2, RING, 0);
  int a = slot_take(&r.link[0]);
  int b = slot_take(&r.link[0]);
  attach(&r, a);
  attach(&r, b);
  slot_give_back(&r.link[0], (uint32_t)a);
  slot_give_back(&r.link[0], (uint32_t)b);
  assert_int_equal(slot_take(&r.link[0]), -1); /* the server may still read them */
  server_leaves(&r, a);
  assert_int_equal(slot_take(&r.link[0]), a);
  assert_int_equal(slot_take(&r.link[0]), -1);
  server_leaves(&r, b);
  assert_int_equal(slot_take(&r.link[0]), b);
  rig_close(&r);
}

static void the_last_one_left_is_taken_first(void **state) {
  (void)state;
  struct rig r;
  rig_open(&r, SLOTS, RING, 0);
  int a = slot_take(&r.link[0]);
  attach(&r, a);
  slot_give_back(&r.link[0], (uint32_t)a);
  server_leaves(&r, a);
  assert_int_equal(slot_take(&r.link[0]), a); /* its pages are warm */
  rig_close(&r);
}

static void another_process_leaves_it_to_the_owner(void **state) {
  (void)state;
  struct rig r;
  rig_open(&r, 1, RING, 0);
  int s = slot_take(&r.link[0]);
  int pid = bertha.pid;
  bertha.pid = pid + 1; /* as in a child */
  slot_give_back(&r.link[0], (uint32_t)s);
  bertha.pid = pid;
  assert_int_equal(r.link[0].free_count, 0);
  assert_int_equal(slot_take(&r.link[0]), s); /* by a sweep */
  rig_close(&r);
}

static struct rig shared;
static _Atomic int users[SLOTS];
static _Atomic int doubles;

static void *come_and_go(void *p) {
  uint64_t random = (uint64_t)(uintptr_t)p * 77 + 1;
  for (int i = 0; i < 20000; i++) {
    int s = slot_take(&shared.link[0]);
    if (s < 0) {
      continue;
    }
    if (atomic_fetch_add(&users[s], 1) != 0) {
      atomic_fetch_add(&doubles, 1);
    }
    bool attached = rig_random(&random) & 1;
    if (attached) {
      attach(&shared, s);
    }
    atomic_fetch_sub(&users[s], 1);
    if (attached && (rig_random(&random) & 1)) {
      server_leaves(&shared, s);
      attached = false;
    }
    slot_give_back(&shared.link[0], (uint32_t)s);
    if (attached) {
      server_leaves(&shared, s);
    }
  }
  return NULL;
}

static void no_slot_has_two_users(void **state) {
  (void)state;
  pthread_t threads[4];
  rig_open(&shared, SLOTS, RING, 0);
  for (uintptr_t i = 0; i < 4; i++) {
    assert_int_equal(pthread_create(&threads[i], NULL, come_and_go, (void *)(i + 1)), 0);
  }
  for (int i = 0; i < 4; i++) {
    pthread_join(threads[i], NULL);
  }
  assert_int_equal(doubles, 0);
  int left = 0;
  while (slot_take(&shared.link[0]) >= 0) {
    left++;
  }
  assert_int_equal(left, SLOTS); /* and none was lost */
  rig_close(&shared);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(sound_headers_are_taken),
      cmocka_unit_test(lying_headers_are_refused),
      cmocka_unit_test(only_sealed_memory_is_mapped),
      cmocka_unit_test(ring_sizes_that_are_none_are_the_default),
      cmocka_unit_test(what_is_looked_for_stays),
      cmocka_unit_test(slots_are_taken_once),
      cmocka_unit_test(each_use_has_its_number),
      cmocka_unit_test(a_slot_waits_for_the_server),
      cmocka_unit_test(the_last_one_left_is_taken_first),
      cmocka_unit_test(another_process_leaves_it_to_the_owner),
      cmocka_unit_test(no_slot_has_two_users),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
