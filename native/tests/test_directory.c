/* Reading the agent's directory: found by address and port, never torn, never a file of somebody else's. */
#include "rig.h"

#include <pthread.h>
#include <sys/stat.h>

#include <cmocka.h>

enum { SIZE = sizeof(struct bertha_dir_header) + BERTHA_DIR_ENTRIES * sizeof(struct bertha_dir_entry) };

static char place[64];
static char file[80];
static struct bertha_dir_header *header;
static struct bertha_dir_entry *entries;

/* directory.c looks again for a missing file only after a second, so there is one for all tests. */
static int begin(void **state) {
  (void)state;
  snprintf(place, sizeof place, "%s/bertha-test-XXXXXX",
           getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp");
  if (mkdtemp(place) == NULL) {
    return -1;
  }
  snprintf(bertha.agent_path, sizeof bertha.agent_path, "%s/agent", place);
  snprintf(file, sizeof file, "%s/agent.dir", place);
  int fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0 || ftruncate(fd, SIZE) != 0) {
    return -1;
  }
  header = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (header == MAP_FAILED) {
    return -1;
  }
  entries = (struct bertha_dir_entry *)(void *)(header + 1);
  header->magic = BERTHA_MAGIC_DIR;
  header->version = BERTHA_LAYOUT_VERSION;
  header->entry_count = BERTHA_DIR_ENTRIES;
  atomic_store(&header->generation, 99);
  return 0;
}

static int end(void **state) {
  (void)state;
  return unlink(file) != 0 || rmdir(place) != 0;
}

static int clear(void **state) {
  (void)state;
  memset((void *)entries, 0, SIZE - sizeof *header);
  return 0;
}

static void address(uint8_t addr[16], uint32_t number) {
  memset(addr, 0, 16);
  addr[10] = addr[11] = 0xff;
  memcpy(addr + 12, &number, 4);
}

static struct bertha_dir_entry *insert(uint32_t number, uint16_t port, uint64_t netns, uint64_t listener) {
  uint8_t addr[16];
  address(addr, number);
  uint32_t at = bertha_dir_hash(addr, port) % BERTHA_DIR_ENTRIES;
  while (entries[at].port != 0) {
    at = (at + 1) % BERTHA_DIR_ENTRIES;
  }
  memcpy(entries[at].addr, addr, 16);
  entries[at].netns = netns;
  entries[at].listener = listener;
  entries[at].uid = 5;
  entries[at].port = port;
  return &entries[at];
}

static int find(uint32_t number, uint16_t port, struct dir_hit *hits, int max) {
  uint8_t addr[16];
  address(addr, number);
  return directory_find(addr, port, hits, max);
}

static void finds_what_is_listed(void **state) {
  (void)state;
  struct dir_hit hits[4];
  assert_int_equal(directory_generation(), 99);
  assert_int_equal(find(1, 80, hits, 4), 0);
  insert(1, 80, 11, 3);
  assert_int_equal(find(1, 80, hits, 4), 1);
  assert_int_equal(hits[0].listener, 3);
  assert_int_equal(hits[0].netns, 11);
  assert_int_equal(hits[0].uid, 5);
  assert_int_equal(find(1, 81, hits, 4), 0);
  assert_int_equal(find(2, 80, hits, 4), 0);
}

static void brief_processes_are_told_of(void **state) {
  (void)state;
  struct dir_hit hits[4];
  static const char words[] = "sh\0-c\0true\0and more";
  static const char other[] = "sh\0-c\0false\0and more";
  const int64_t now = INT64_C(7) << 40;
  const int64_t second = INT64_C(1000000000);
  uint32_t kind = bertha_brief_kind(5, words, sizeof words);
  insert(21, 80, 11, 3)->brief = bertha_brief_word(kind, now + second);
  insert(22, 80, 11, 3);
  assert_int_equal(find(22, 80, hits, 4), 1);
  assert_int_equal(hits[0].brief, 0);
  assert_int_equal(find(21, 80, hits, 4), 1);
  assert_true(bertha_brief_holds(hits[0].brief, kind, now));
  assert_int_equal(kind, bertha_brief_kind(5, words, sizeof "sh" + sizeof "-c" + sizeof "true"));
  assert_int_not_equal(kind, bertha_brief_kind(6, words, sizeof words));
  assert_int_not_equal(kind, bertha_brief_kind(5, other, sizeof other));
  assert_false(bertha_brief_holds(hits[0].brief, kind + 1, now));
  assert_false(bertha_brief_holds(hits[0].brief, kind, now + second + (1 << 20)));
  assert_false(bertha_brief_holds(hits[0].brief, kind, now - 2 * second)); /* another clock's */
  int64_t wraps = (INT64_C(1) << 52) - second / 2;
  assert_true(bertha_brief_holds(bertha_brief_word(kind, wraps + second), kind, wraps));
}

static void several_namespaces_may_have_one_address(void **state) {
  (void)state;
  struct dir_hit hits[4];
  for (uint64_t n = 1; n <= 3; n++) {
    insert(9, 6379, n, 100 + n);
  }
  assert_int_equal(find(9, 6379, hits, 4), 3);
  assert_int_equal(hits[0].listener + hits[1].listener + hits[2].listener, 306);
  assert_int_equal(find(9, 6379, hits, 2), 2);
}

static void a_removed_entry_does_not_end_the_search(void **state) {
  (void)state;
  struct dir_hit hits[4];
  struct bertha_dir_entry *first = insert(9, 6379, 1, 101);
  insert(9, 6379, 2, 102);
  first->listener = 0;
  assert_int_equal(find(9, 6379, hits, 4), 1);
  assert_int_equal(hits[0].listener, 102);
}

static void a_full_directory_ends_the_search(void **state) {
  (void)state;
  struct dir_hit hits[4];
  for (uint32_t i = 0; i < BERTHA_DIR_ENTRIES; i++) {
    entries[i].port = 1;
    entries[i].listener = 1;
  }
  assert_int_equal(find(1, 80, hits, 4), 0);
}

static void an_entry_being_written_is_left_out(void **state) {
  (void)state;
  struct dir_hit hits[4];
  struct bertha_dir_entry *e = insert(1, 80, 11, 3);
  atomic_store(&e->seq, 5);
  assert_int_equal(find(1, 80, hits, 4), 0);
  atomic_store(&e->seq, 6);
  assert_int_equal(find(1, 80, hits, 4), 1);
}

static _Atomic bool stop;

/* As the agent writes: odd, change, even. */
static void *rewrite(void *p) {
  struct bertha_dir_entry *e = p;
  for (uint64_t n = 1; !atomic_load(&stop); n++) {
    uint32_t seq = atomic_load_explicit(&e->seq, memory_order_relaxed);
    atomic_store_explicit(&e->seq, seq + 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    ((volatile struct bertha_dir_entry *)e)->netns = n;
    ((volatile struct bertha_dir_entry *)e)->listener = n + 1000000;
    atomic_store_explicit(&e->seq, seq + 2, memory_order_release);
  }
  return NULL;
}

static void never_torn(void **state) {
  (void)state;
  pthread_t writer;
  struct dir_hit hits[1];
  struct bertha_dir_entry *e = insert(1, 80, 1, 1000001);
  atomic_store(&stop, false);
  assert_int_equal(pthread_create(&writer, NULL, rewrite, e), 0);
  int seen = 0;
  for (int i = 0; i < 200000; i++) {
    if (find(1, 80, hits, 1) == 1) {
      assert_int_equal(hits[0].listener, hits[0].netns + 1000000);
      seen++;
    }
  }
  atomic_store(&stop, true);
  pthread_join(writer, NULL);
  assert_true(seen > 0);
}

/* Last: afterwards nothing is found for a second. */
static void an_agent_that_left_is_not_asked(void **state) {
  (void)state;
  struct dir_hit hits[1];
  insert(1, 80, 1, 1);
  assert_int_equal(find(1, 80, hits, 1), 1);
  atomic_store(&header->generation, 0);
  assert_int_equal(directory_generation(), 0);
  assert_int_equal(find(1, 80, hits, 1), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(finds_what_is_listed, clear),
      cmocka_unit_test_setup(brief_processes_are_told_of, clear),
      cmocka_unit_test_setup(several_namespaces_may_have_one_address, clear),
      cmocka_unit_test_setup(a_removed_entry_does_not_end_the_search, clear),
      cmocka_unit_test_setup(a_full_directory_ends_the_search, clear),
      cmocka_unit_test_setup(an_entry_being_written_is_left_out, clear),
      cmocka_unit_test_setup(never_torn, clear),
      cmocka_unit_test_setup(an_agent_that_left_is_not_asked, clear),
  };
  return cmocka_run_group_tests(tests, begin, end);
}
