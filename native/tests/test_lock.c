/* The lock that threads and forked processes share: exclusive, told of its own holder, free of the dead. */
#include "rig.h"

#include <pthread.h>
#include <sys/wait.h>

#include <cmocka.h>

static _Atomic uint32_t *shared_word(void) {
  void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  assert_true(p != MAP_FAILED);
  return p;
}

static void the_holder_itself_is_told(void **state) {
  (void)state;
  _Atomic uint32_t lock = 0;
  assert_true(bertha_lock(&lock));
  assert_int_equal(atomic_load(&lock), bertha_tid());
  assert_false(bertha_lock(&lock)); /* a signal handler, say */
  bertha_unlock(&lock);
  assert_true(bertha_lock(&lock));
  bertha_unlock(&lock);
}

static _Atomic uint32_t lock_of_many;
static long counted;

static void *count(void *p) {
  (void)p;
  for (int i = 0; i < 20000; i++) {
    if (bertha_lock(&lock_of_many)) {
      counted = counted + 1;
      bertha_unlock(&lock_of_many);
    }
  }
  return NULL;
}

static void excludes(void **state) {
  (void)state;
  pthread_t threads[4];
  counted = 0;
  for (int i = 0; i < 4; i++) {
    assert_int_equal(pthread_create(&threads[i], NULL, count, NULL), 0);
  }
  for (int i = 0; i < 4; i++) {
    pthread_join(threads[i], NULL);
  }
  assert_int_equal(counted, 80000);
}

static void a_dead_holder_is_found_out(void **state) {
  (void)state;
  _Atomic uint32_t *lock = shared_word();
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    bertha_lock(lock);
    kill(getpid(), SIGKILL);
  }
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_int_equal(atomic_load(lock), child);
  assert_true(bertha_lock(lock));
  assert_int_equal(atomic_load(lock), bertha_tid());
  bertha_unlock(lock);
  munmap((void *)lock, 4096);
}

/* A child has its own thread number, although it is its parent's copy. */
static void a_child_is_not_its_parent(void **state) {
  (void)state;
  _Atomic uint32_t *lock = shared_word();
  int go[2];
  assert_int_equal(pipe(go), 0);
  assert_true(bertha_lock(lock));
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    char c = 'x';
    bool early = atomic_load(lock) == bertha_tid();
    if (write(go[1], &c, 1) != 1) {
      _exit(3);
    }
    _exit(!early && bertha_lock(lock) ? 0 : 4);
  }
  char c;
  assert_int_equal(read(go[0], &c, 1), 1);
  bertha_unlock(lock);
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status));
  assert_int_equal(WEXITSTATUS(status), 0);
  close(go[0]);
  close(go[1]);
  munmap((void *)lock, 4096);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_holder_itself_is_told),
      cmocka_unit_test(excludes),
      cmocka_unit_test(a_dead_holder_is_found_out),
      cmocka_unit_test(a_child_is_not_its_parent),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
