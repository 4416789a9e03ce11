/* The mailbox of `unix`: an end comes to the claim that it was made for, or to nobody. */
#include "rig.h"

#include "../core/unixmail.h"

#include <sys/resource.h>

#include <cmocka.h>

enum { SLOTS = 8, RING = 4096 };

static void open_mailbox(struct rig *r) {
  int box[2];
  rig_open(r, SLOTS, RING, 0);
  rig_check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, box) == 0, "socketpair");
  r->link[BERTHA_SIDE_CLIENT].mailbox = box[0];
  r->link[BERTHA_SIDE_SERVER].mailbox = box[1];
  r->link[BERTHA_SIDE_CLIENT].mail = calloc(SLOTS, sizeof(struct unix_mail));
}

static void close_mailbox(struct rig *r) {
  mail_forget(&r->link[0]);
  mail_forget(&r->link[1]);
  close(r->link[0].mailbox);
  close(r->link[1].mailbox);
  free(r->link[0].mail);
  rig_close(r);
}

static void claim_number(struct rig *r, uint32_t slot, uint32_t use) {
  atomic_store(&r->link[0].slots[slot].state, BERTHA_SLOT_WORD(use, BERTHA_SLOT_CLAIMED));
}

/* Posts one end of a pair, and gives back the other. */
static int post_end(struct rig *r, uint32_t slot, uint32_t use) {
  int pair[2];
  rig_check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
  assert_int_equal(mail_post(&r->link[BERTHA_SIDE_SERVER], slot, use, pair[1]), 0);
  close(pair[1]);
  return pair[0];
}

static bool are_a_pair(int one, int other) {
  char byte = 0;
  return send(one, "x", 1, MSG_NOSIGNAL) == 1 && recv(other, &byte, 1, MSG_DONTWAIT) == 1 && byte == 'x';
}

static void an_end_comes_to_its_slot(void **state) {
  (void)state;
  struct rig r;
  open_mailbox(&r);
  claim_number(&r, 1, 5);
  claim_number(&r, 2, 9);
  int one = post_end(&r, 1, 5);
  int two = post_end(&r, 2, 9);
  int got_two = mail_take(&r.link[0], 2); /* reads what is for slot 1, too, and keeps it */
  int got_one = mail_take(&r.link[0], 1);
  assert_true(are_a_pair(one, got_one));
  assert_true(are_a_pair(two, got_two));
  assert_int_equal(mail_take(&r.link[0], 1), -1);
  close(one);
  close(two);
  close(got_one);
  close(got_two);
  close_mailbox(&r);
}

static int use_up(int fds[static 256]) {
  int n = 0;
  while (n < 256 && (fds[n] = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0) {
    n++;
  }
  assert_int_equal(errno, EMFILE);
  return n;
}

/* The kernel throws away what it has no number for: one is kept, or the letter stays where it is. */
static void an_end_waits_for_a_descriptor(void **state) {
  (void)state;
  struct rlimit before, few;
  assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
  few = before;
  few.rlim_cur = 200;
  assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
  struct rig r;
  open_mailbox(&r);
  claim_number(&r, 1, 5);
  claim_number(&r, 2, 9);
  assert_true(mail_expect(&r.link[0], 1, true));
  assert_true(mail_expect(&r.link[0], 2, false));
  int one = post_end(&r, 1, 5);
  int two = post_end(&r, 2, 9);
  int fds[256];
  int n = use_up(fds);
  assert_false(mail_expect(&r.link[0], 3, true));
  int got_one = mail_take(&r.link[0], 1);
  assert_true(are_a_pair(one, got_one));
  assert_int_equal(mail_take(&r.link[0], 2), -1);
  assert_true(mail_waits(&r.link[0]));
  close(fds[--n]);
  int got_two = mail_take(&r.link[0], 2);
  assert_true(are_a_pair(two, got_two));
  assert_false(mail_waits(&r.link[0]));
  while (n > 0) {
    close(fds[--n]);
  }
  mail_expect_no_more(&r.link[0], 3);
  assert_int_equal(r.link[0].mail_expected, 0);
  close(one);
  close(two);
  close(got_one);
  close(got_two);
  close_mailbox(&r);
  assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
}

/* Read on behalf of another connection, never fetched: the slot's next connection must not get it. */
static void an_end_of_an_earlier_claim_is_nobodys(void **state) {
  (void)state;
  struct rig r;
  open_mailbox(&r);
  claim_number(&r, 1, 5);
  claim_number(&r, 2, 1);
  int old = post_end(&r, 1, 5);
  assert_int_equal(mail_take(&r.link[0], 2), -1);
  claim_number(&r, 1, 6);
  assert_int_equal(mail_take(&r.link[0], 1), -1);
  char byte;
  assert_int_equal(recv(old, &byte, 1, MSG_DONTWAIT), 0); /* closed */
  claim_number(&r, 1, 7);
  int second = post_end(&r, 1, 7);
  assert_int_equal(mail_take(&r.link[0], 2), -1);
  claim_number(&r, 1, 8);
  int third = post_end(&r, 1, 8); /* while the one for claim 7 still lies there */
  int got = mail_take(&r.link[0], 1);
  assert_false(are_a_pair(second, got));
  assert_true(are_a_pair(third, got));
  close(old);
  close(second);
  close(third);
  close(got);
  close_mailbox(&r);
}

static void ends_made_ahead_belong_together(void **state) {
  (void)state;
  struct rig r;
  open_mailbox(&r);
  struct link *client = &r.link[BERTHA_SIDE_CLIENT];
  struct link *server = &r.link[BERTHA_SIDE_SERVER];
  uint64_t number = 0;
  assert_int_equal(spare_fetch(client, &number), -1);
  server->spares.target = 2;
  spares_fill(server);
  assert_int_equal(server->spares.count, 2);
  for (int i = 0; i < 2; i++) {
    int mine = spare_fetch(client, &number);
    assert_true(mine >= 0);
    assert_int_equal(spare_find(server, number + 1000), -1);
    int theirs = spare_find(server, number);
    assert_true(are_a_pair(mine, theirs));
    assert_int_equal(spare_find(server, number), -1); /* once */
    close(mine);
    close(theirs);
  }
  assert_int_equal(spare_fetch(client, &number), -1);
  for (int i = 0; i < 2 * UNIX_SPARES; i++) {
    spare_missed(server);
    spares_fill(server);
    assert_in_range(server->spares.count, 1, UNIX_SPARES);
  }
  close_mailbox(&r);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(an_end_comes_to_its_slot),
      cmocka_unit_test(an_end_waits_for_a_descriptor),
      cmocka_unit_test(an_end_of_an_earlier_claim_is_nobodys),
      cmocka_unit_test(ends_made_ahead_belong_together),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
