/* Who claims a connection by another user's link proves that the connection's other half is that user's. */
#include "rig.h"

#include <sys/stat.h>

#include <cmocka.h>

#include "../core/claimant.h"
#include "../core/links.h"

static struct bertha_claimant user(uint32_t uid, uint32_t proof) {
  struct stat st;
  rig_check(stat("/proc/self/ns/user", &st) == 0, "stat");
  return (struct bertha_claimant){.users = st.st_ino, .uid = uid, .proof = proof};
}

struct three {
  int listening;
  int client;
  int server;
  struct sockaddr_storage local, peer;
};

static void three_open(struct three *t, int family, const char *to) {
  struct sockaddr_in6 any = {.sin6_family = AF_INET6};
  struct sockaddr_in6 six = {.sin6_family = AF_INET6};
  struct sockaddr_in four = {.sin_family = AF_INET};
  int off = 0;
  socklen_t size = sizeof any;
  t->listening = socket(AF_INET6, SOCK_STREAM, 0);
  rig_check(setsockopt(t->listening, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) == 0, "dual stack");
  rig_check(bind(t->listening, (struct sockaddr *)&any, sizeof any) == 0 && listen(t->listening, 4) == 0,
            "listen");
  rig_check(getsockname(t->listening, (struct sockaddr *)&any, &size) == 0, "getsockname");
  four.sin_port = six.sin6_port = any.sin6_port;
  void *at = family == AF_INET ? (void *)&four.sin_addr : (void *)&six.sin6_addr;
  rig_check(inet_pton(family, to, at) == 1, to);
  const void *name = family == AF_INET ? (void *)&four : (void *)&six;
  t->client = socket(family, SOCK_STREAM, 0);
  rig_check(connect(t->client, name, family == AF_INET ? sizeof four : sizeof six) == 0, "connect");
  size = sizeof t->peer;
  t->server = accept(t->listening, (struct sockaddr *)&t->peer, &size);
  size = sizeof t->local;
  rig_check(getsockname(t->server, (struct sockaddr *)&t->local, &size) == 0, "getsockname");
}

static void three_close(struct three *t) {
  close(t->client);
  close(t->server);
  close(t->listening);
}

static bool owns(const struct three *t, uint32_t uid, uint32_t proof) {
  struct bertha_claimant claimant = user(uid, proof);
  return claimant_owns(&claimant, t->server, (const struct sockaddr *)&t->local,
                       (const struct sockaddr *)&t->peer);
}

static void the_other_half_is_his(void **state) {
  (void)state;
  static const struct {
    int family;
    const char *to;
  } ways[] = {{AF_INET, "127.0.0.1"}, {AF_INET6, "::ffff:127.0.0.1"}, {AF_INET6, "::1"}};
  uint32_t me = geteuid();
  for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
    struct three t;
    int before = rig_descriptors(64);
    three_open(&t, ways[i].family, ways[i].to);
    assert_true(owns(&t, me, BERTHA_PROOF_NEEDED));
    assert_false(owns(&t, me + 1, BERTHA_PROOF_NEEDED));
    assert_false(owns(&t, me + 1, BERTHA_PROOF_ELSEWHERE)); /* it is here, and not his */
    struct bertha_claimant of_others = user(me, BERTHA_PROOF_NEEDED);
    of_others.users++; /* a number of another user namespace's */
    assert_false(
        claimant_owns(&of_others, t.server, (struct sockaddr *)&t.local, (struct sockaddr *)&t.peer));
    three_close(&t);
    assert_int_equal(rig_descriptors(64), before);
  }
}

/* The kernel names a listener where there is no connection. */
static void a_listener_there_proves_nothing(void **state) {
  (void)state;
  struct three t;
  three_open(&t, AF_INET, "127.0.0.1");
  memcpy(&t.peer, &t.local, sizeof t.local); /* as if it had come from the listener's port */
  assert_false(owns(&t, geteuid(), BERTHA_PROOF_NEEDED));
  assert_true(owns(&t, geteuid(), BERTHA_PROOF_ELSEWHERE));
  three_close(&t);
}

/* ---- a claim, and who believes it ---------------------------------------------------------------- */

enum { SLOTS = 4, RING = 4096 };

/* A connection of ours that a link of `claimant` claims: what becomes of it. */
static uint32_t claimed_by(struct bertha_claimant claimant, uint32_t *slot_state) {
  static uint32_t index;
  size_t bytes =
      sizeof(struct bertha_claims_header) + BERTHA_CLAIM_BUCKETS * sizeof(struct bertha_claims_bucket);
  struct bertha_claims_header *claims = aligned_alloc(64, (bytes + 63) / 64 * 64);
  rig_check(claims != NULL, "aligned_alloc");
  memset((void *)claims, 0, bytes);
  struct listener listener = {.id = 7, .pid = bertha.pid, .claims = claims, .next = mapped.listeners};
  mapped.listeners = &listener;
  struct bertha_link_header h;
  rig_header(&h, SLOTS, RING);
  h.index = ++index;
  int memory = rig_memory((const void *)&h, sizeof h, h.total_size, F_SEAL_SHRINK);
  struct bertha_link_reply reply = {.listener = 7, .index = index, .plan = {BERTHA_IMPL_SHM, 0, 0, 0}};
  reply.claimant = claimant;
  struct link *client = link_adopt(dup(memory), BERTHA_SIDE_CLIENT, &reply);
  struct link *server = link_adopt(memory, BERTHA_SIDE_SERVER, &reply);
  rig_check(client != NULL && server != NULL, "link_adopt");
  link_hold_again(7, index);
  struct three t;
  three_open(&t, AF_INET, "127.0.0.1");
  struct bertha_slot *s = &server->slots[1];
  slot_reset(s);
  address_of((struct sockaddr *)&t.peer, s->tuple.client_addr, &s->tuple.client_port);
  address_of((struct sockaddr *)&t.local, s->tuple.server_addr, &s->tuple.server_port);
  atomic_store(&s->state, BERTHA_SLOT_WORD(1, BERTHA_SLOT_CLAIMED));
  uint32_t tag = tuple_tag(s->tuple.client_addr, s->tuple.client_port);
  uint64_t words[2 * BERTHA_CLAIM_WAYS];
  assert_true(claim_publish(claims, tag, bertha_claim_word(tag, index, 1)));
  struct conn *c = conn_new(t.server, BERTHA_CONN_SOCKET);
  conn_track(t.server, c);
  conn_accepted(c, t.server, &listener, (struct sockaddr *)&t.peer);
  uint32_t kind = conn_kind(c);
  assert_int_equal(c->info.reason, kind == BERTHA_CONN_SHM ? 0 : BERTHA_WHY_OTHER_USER);
  assert_int_equal(claim_find(claims, tag, words), 0);
  *slot_state = BERTHA_SLOT_STATE(atomic_load(&s->state));
  conn_forget(t.server);
  atomic_store(&c->info.refs, 0);
  conn_free(c);
  three_close(&t);
  mapped.listeners = listener.next;
  free(claims);
  return kind;
}

static void who_does_not_own_it_does_not_get_it(void **state) {
  (void)state;
  uint32_t slot;
  uint32_t me = geteuid();
  assert_int_equal(claimed_by(user(me + 1, BERTHA_PROOF_NEEDED), &slot), BERTHA_CONN_MAYBE);
  assert_int_equal(slot, BERTHA_SLOT_REFUSED);
  assert_int_equal(claimed_by(user(me, BERTHA_PROOF_NEEDED), &slot), BERTHA_CONN_SHM);
  assert_int_equal(slot, BERTHA_SLOT_ATTACHED);
  assert_int_equal(claimed_by(user(me + 1, BERTHA_PROOF_NONE), &slot), BERTHA_CONN_SHM);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_other_half_is_his),
      cmocka_unit_test(a_listener_there_proves_nothing),
      cmocka_unit_test(who_does_not_own_it_does_not_get_it),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
