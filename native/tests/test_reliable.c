/* reliable without sockets: a network that loses, doubles and reorders as a seed says, and time that a test makes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <math.h>

#include "../chunnels/reliable.c"
#include "../chunnels/reliable_receive.c"
#include "../chunnels/reliable_send.c"

#include "../cffi/reliable_pipe.c"

#include <cmocka.h>

enum { CLIENT = 0, SERVER = 1, MTU = 1200, FLYING = 8192, SENT = 64 };

struct flying { /* a datagram on its way */
  uint8_t *bytes;
  size_t size;
  double at;
  int to;
};

struct network {
  struct reliable *end[2];
  struct flying flying[FLYING];
  int count;
  double now;
  double loss;
  uint32_t random;
  uint32_t said[2];                         /* datagrams, by sender */
  uint32_t got[2];                          /* messages, by receiver */
  bool (*passes)(const struct flying *one); /* NULL: everything, but for the loss */
};

static uint32_t random_of(struct network *net) {
  net->random ^= net->random << 13;
  net->random ^= net->random >> 17;
  net->random ^= net->random << 5;
  return net->random;
}

static bool by_chance(struct network *net, double share) {
  return random_of(net) / 4294967296.0 < share;
}

/* The size and the bytes of message `n` that one end sends. */
static size_t size_of(int from, uint32_t n) {
  static const uint32_t sizes[] = {0, 1, 100, MTU - RELIABLE_HEADER, MTU - RELIABLE_HEADER + 1, 5000, 40000};
  return sizes[(n * 5 + (uint32_t)from) % (sizeof sizes / sizeof *sizes)];
}

static uint8_t byte_of(int from, uint32_t n, size_t at) {
  return (uint8_t)(n * 31 + at * 7 + at / 251 + (size_t)from);
}

static void fly(struct network *net, int to, const uint8_t *bytes, size_t size, double delay) {
  assert_true(net->count < FLYING);
  struct flying one = {malloc(size), size, net->now + delay, to};
  assert_non_null(one.bytes);
  memcpy(one.bytes, bytes, size);
  if (net->passes != NULL && !net->passes(&one)) {
    free(one.bytes);
    return;
  }
  net->flying[net->count++] = one;
}

/* Takes all that has come of a call. */
static void take_all(struct network *net, int side) {
  static uint8_t datagram[RELIABLE_MTU_MAX];
  const uint8_t *data;
  size_t size;
  while (reliable_message(net->end[side], &data, &size)) {
    uint32_t n = net->got[side]++;
    assert_int_equal(size, size_of(!side, n));
    for (size_t i = 0; i < size; i++) {
      assert_int_equal(data[i], byte_of(!side, n, i));
    }
  }
  while ((size = reliable_datagram(net->end[side], datagram, sizeof datagram)) > 0) {
    net->said[side]++;
    int copies = by_chance(net, net->loss / 4) ? 2 : 1;
    for (int i = 0; i < copies; i++) {
      if (!by_chance(net, net->loss)) {
        fly(net, !side, datagram, size, 0.02 + (net->loss > 0 ? random_of(net) % 30 * 0.001 : 0));
      }
    }
  }
}

static void open_network(struct network *net, double loss, uint32_t seed, uint64_t first) {
  memset(net, 0, sizeof *net);
  net->loss = loss;
  net->random = seed * 2654435761u + 1;
  net->now = 1000;
  for (int side = 0; side < 2; side++) {
    struct reliable_config config = {
        .server = side == SERVER, .mtu = MTU, .connection = 77, .give_up = 600, .first = first};
    net->end[side] = reliable_open(&config);
    assert_non_null(net->end[side]);
    assert_true(reliable_start(net->end[side], net->now));
    take_all(net, side);
  }
}

static void finish(struct network *net) {
  for (int i = 0; i < net->count; i++) {
    free(net->flying[i].bytes);
  }
  for (int side = 0; side < 2; side++) {
    reliable_close(net->end[side]);
  }
}

/* The next thing happens; false: nothing will. */
static bool step(struct network *net) {
  int first = -1;
  double at = INFINITY;
  for (int i = 0; i < net->count; i++) {
    if (net->flying[i].at < at) {
      at = net->flying[i].at;
      first = i;
    }
  }
  int side = -1;
  for (int i = 0; i < 2; i++) {
    double due = reliable_state(net->end[i]).deadline;
    if (due < at) {
      at = due;
      side = i;
    }
  }
  if (at == INFINITY) {
    return false;
  }
  net->now = at > net->now ? at : net->now;
  if (side >= 0) {
    assert_true(reliable_tick(net->end[side], net->now));
  } else {
    struct flying one = net->flying[first];
    net->flying[first] = net->flying[--net->count];
    side = one.to;
    assert_true(reliable_came(net->end[side], one.bytes, one.size, net->now));
    free(one.bytes);
  }
  take_all(net, side);
  return true;
}

static void send_one(struct network *net, int side, uint32_t n) {
  static uint8_t message[40000];
  size_t size = size_of(side, n);
  for (size_t i = 0; i < size; i++) {
    message[i] = byte_of(side, n, i);
  }
  assert_true(reliable_send(net->end[side], message, size, net->now));
  take_all(net, side);
}

static void talk(struct network *net) {
  uint32_t sent[2] = {0, 0};
  bool ended[2] = {false, false};
  for (long i = 0; !reliable_state(net->end[CLIENT]).ended || !reliable_state(net->end[SERVER]).ended; i++) {
    assert_true(i < 1000000);
    for (int side = 0; side < 2; side++) {
      if (sent[side] < SENT && !reliable_state(net->end[side]).full) {
        send_one(net, side, sent[side]++);
      } else if (sent[side] == SENT && !ended[side]) {
        ended[side] = true;
        assert_true(reliable_end(net->end[side], net->now));
        take_all(net, side);
      }
    }
    step(net);
  }
  assert_int_equal(net->got[CLIENT], SENT);
  assert_int_equal(net->got[SERVER], SENT);
  while (step(net)) { /* nobody waits for ever */
  }
  for (int side = 0; side < 2; side++) {
    const struct reliable *r = net->end[side];
    assert_false(reliable_state(r).lingers);
    assert_true(r->bytes == NULL && r->packet_room <= 16 && r->waiting_room <= 16);
    assert_true(r->early == NULL && r->up.bytes == NULL);
    assert_int_equal(r->outstanding, 0);
    assert_int_equal(r->lost, 0);
    assert_int_equal(r->parts, 0);
  }
}

static void everything_arrives(void **state) {
  static const double losses[] = {0, 0.05, 0.2, 0.5};
  (void)state;
  for (uint32_t seed = 1; seed <= 5; seed++) {
    for (size_t i = 0; i < sizeof losses / sizeof *losses; i++) {
      static struct network net;
      open_network(&net, losses[i], seed, 1);
      talk(&net);
      finish(&net);
    }
  }
}

static void numbers_go_around(void **state) {
  (void)state;
  for (uint32_t before = 0; before < 400; before += 57) {
    static struct network net;
    open_network(&net, 0.1, before + 1, ((uint64_t)1 << 32) - before);
    talk(&net);
    finish(&net);
  }
}

static bool nothing(const struct flying *one) {
  (void)one;
  return false;
}

static void it_begins_with_ten(void **state) {
  static struct network net;
  (void)state;
  open_network(&net, 0, 1, 1);
  while (net.count > 0) {
    step(&net);
  }
  net.passes = nothing;
  uint32_t before = net.said[CLIENT];
  for (uint32_t n = 0; n < SENT; n++) {
    send_one(&net, CLIENT, n);
  }
  assert_int_equal(net.said[CLIENT] - before, 10);
  finish(&net);
}

/* RFC 6298, 5.5: the timer doubles, here up to eight seconds. */
static void it_waits_longer_each_time(void **state) {
  static const double waits[] = {1, 2, 4, 8, 8, 8};
  static struct network net;
  (void)state;
  open_network(&net, 0, 1, 1);
  net.count = 0; /* the hello is lost */
  free(net.flying[0].bytes);
  net.passes = nothing;
  for (size_t i = 0; i < sizeof waits / sizeof *waits; i++) {
    double before = net.now;
    assert_true(step(&net));
    assert_true(net.now - before > waits[i] - 1e-6 && net.now - before < waits[i] + 1e-6);
  }
  finish(&net);
}

static void a_silent_end_is_given_up(void **state) {
  (void)state;
  struct reliable_config config = {.mtu = MTU, .connection = 1, .give_up = 5, .first = 1};
  struct reliable *r = reliable_open(&config);
  uint8_t datagram[MTU];
  double now = 0;
  assert_true(reliable_start(r, now));
  for (int i = 0; i < 10 && reliable_why(r)[0] == '\0'; i++) {
    while (reliable_datagram(r, datagram, sizeof datagram) > 0) {
    }
    now = reliable_state(r).deadline;
    reliable_tick(r, now);
  }
  assert_string_equal(reliable_why(r), "reliable: the other end has not answered for 5 s");
  assert_true(reliable_state(r).deadline == INFINITY);
  assert_false(reliable_send(r, datagram, 1, now));
  assert_false(reliable_came(r, datagram, 1, now));
  assert_int_equal(reliable_datagram(r, datagram, sizeof datagram), 0);
  reliable_close(r);
}

static int dropped;

/* The first data is lost, once. */
static bool all_but_one(const struct flying *one) {
  return !(one->bytes[0] == RELIABLE_DATA && one->to == SERVER && dropped++ == 0);
}

/* RFC 6582: after three that overtook it, without waiting for the timer; the window is halved. */
static void what_is_overtaken_is_sent_again(void **state) {
  static struct network net;
  (void)state;
  dropped = 0;
  open_network(&net, 0, 1, 1);
  while (net.count > 0) {
    step(&net);
  }
  net.passes = all_but_one;
  double before = net.now;
  for (uint32_t n = 0; n < 8; n++) {
    send_one(&net, CLIENT, n);
  }
  while (net.got[SERVER] < 8) {
    step(&net);
  }
  assert_true(net.now - before < 0.9); /* the timer would have been a second */
  assert_true(net.end[CLIENT]->threshold < 10);
  finish(&net);
}

static size_t data_of(uint8_t *to, uint32_t connection, uint8_t flags, uint32_t number, size_t size) {
  to[0] = RELIABLE_DATA;
  to[1] = flags;
  reliable_put32(to + 2, connection);
  reliable_put32(to + 6, number);
  reliable_put32(to + 10, 1);
  memset(to + RELIABLE_HEADER, 'x', size);
  return RELIABLE_HEADER + size;
}

static struct reliable *a_server(void) {
  struct reliable_config config = {.server = true, .mtu = MTU, .give_up = 30, .first = 1};
  struct reliable *r = reliable_open(&config);
  assert_non_null(r);
  assert_true(reliable_start(r, 0));
  return r;
}

static int messages_of(struct reliable *r) {
  uint8_t datagram[MTU];
  const uint8_t *data;
  size_t size;
  int count = 0;
  while (reliable_message(r, &data, &size)) {
    count++;
  }
  while (reliable_datagram(r, datagram, sizeof datagram) > 0) {
  }
  return count;
}

static void strangers_are_ignored(void **state) {
  struct reliable *r = a_server();
  uint8_t datagram[2 * MTU] = {0};
  size_t size;
  (void)state;
  assert_true(reliable_came(r, datagram, 0, 0));
  assert_true(reliable_came(r, datagram, RELIABLE_HEADER - 1, 0));
  assert_true(reliable_came(r, datagram, sizeof datagram, 0));
  size = data_of(datagram, 5, 0, 1, 10);
  assert_true(reliable_came(r, datagram, size, 0));
  assert_int_equal(messages_of(r), 1);
  assert_true(reliable_came(r, datagram, size, 0)); /* twice */
  size = data_of(datagram, 6, 0, 2, 10);
  assert_true(reliable_came(r, datagram, size, 0)); /* another connection's */
  size = data_of(datagram, 5, 0, 2 + RELIABLE_WINDOW, 10);
  assert_true(reliable_came(r, datagram, size, 0)); /* beyond the window */
  size = data_of(datagram, 5, 0, 2, MTU);
  assert_true(reliable_came(r, datagram, size, 0)); /* longer than agreed */
  assert_int_equal(messages_of(r), 0);
  size = data_of(datagram, 5, 0, 2, 0);
  assert_true(reliable_came(r, datagram, size, 0));
  assert_int_equal(messages_of(r), 1);
  reliable_close(r);
}

static void memory_is_bounded(void **state) {
  struct reliable *r = a_server();
  uint8_t datagram[MTU];
  (void)state;
  for (uint32_t n = 2; n < 5000; n++) { /* the first one never comes */
    size_t size = data_of(datagram, 5, 0, n, 100);
    assert_true(reliable_came(r, datagram, size, 0));
    assert_int_equal(messages_of(r), 0);
  }
  assert_int_equal(r->early_count, RELIABLE_WINDOW - 1);
  size_t size = data_of(datagram, 5, 0, 1, 100);
  assert_true(reliable_came(r, datagram, size, 0));
  assert_int_equal(messages_of(r), RELIABLE_WINDOW);
  assert_null(r->early);
  for (uint32_t n = RELIABLE_WINDOW + 1; n < 5000; n++) { /* nobody takes them */
    size = data_of(datagram, 5, 0, n, 100);
    assert_true(reliable_came(r, datagram, size, 0));
  }
  assert_int_equal(messages_of(r), RELIABLE_WINDOW);
  static uint8_t message[RELIABLE_MESSAGE_MAX];
  bool good = true;
  int taken = 0;
  for (; taken < 10 && good; taken += good) {
    good = reliable_send(r, message, sizeof message, 0);
  }
  assert_int_equal(taken, RELIABLE_QUEUE_BYTES / RELIABLE_MESSAGE_MAX);
  assert_string_equal(reliable_why(r), "reliable: more waits to be sent than is kept");
  reliable_close(r);
}

static void a_message_that_has_no_end(void **state) {
  struct reliable *r = a_server();
  uint8_t datagram[MTU];
  bool good = true;
  (void)state;
  for (uint32_t n = 1; n < 20000 && good; n++) {
    size_t size = data_of(datagram, 5, RELIABLE_MORE, n, MTU - RELIABLE_HEADER);
    good = reliable_came(r, datagram, size, 0);
    assert_int_equal(messages_of(r), 0);
  }
  assert_string_equal(reliable_why(r), "reliable: a message of more than 16777216 bytes came");
  reliable_close(r);
}

static struct reliable *one_of(struct reliable_held *held, uint32_t mtu) {
  struct reliable_config config = {
      .server = true, .mtu = mtu, .give_up = 30, .first = 1, .message_max = 1000, .held = held};
  struct reliable *r = reliable_open(&config);
  assert_non_null(r);
  assert_true(reliable_start(r, 0));
  return r;
}

/* What strangers make several hold together: out of order so much and no more, and what is wanted is always taken. */
static void all_hold_so_much(void **state) {
  enum { ENDS = 3, BOUND = 100 * 1024 };
  struct reliable_held held = {.early_max = BOUND};
  struct reliable *r[ENDS];
  uint8_t datagram[MTU];
  (void)state;
  for (int i = 0; i < ENDS; i++) {
    r[i] = one_of(&held, MTU);
    for (uint32_t n = 2; n < RELIABLE_WINDOW; n++) {
      assert_true(reliable_came(r[i], datagram, data_of(datagram, 5, 0, n, 100), 0));
      assert_int_equal(messages_of(r[i]), 0);
      assert_true(held.early <= BOUND);
    }
  }
  assert_true(held.early > BOUND - 1000);
  for (uint32_t n = 1; n < 300; n++) { /* the last one got no room at all: in order it goes on */
    assert_true(reliable_came(r[ENDS - 1], datagram, data_of(datagram, 5, 0, n, 100), 0));
    assert_int_equal(messages_of(r[ENDS - 1]), 1);
  }
  assert_true(reliable_came(r[0], datagram, data_of(datagram, 5, 0, 1, 100), 0));
  assert_true(messages_of(r[0]) > 100);
  assert_true(held.early < BOUND / 2 + 10000);
  assert_true(reliable_begun_at(r[1]) == INFINITY);
  assert_true(reliable_came(r[1], datagram, data_of(datagram, 5, RELIABLE_MORE, 1, 50), 7));
  messages_of(r[1]);
  reliable_drop(r[1]);
  assert_false(reliable_came(r[1], datagram, data_of(datagram, 5, 0, 2, 50), 7));
  for (int i = 0; i < ENDS; i++) {
    reliable_close(r[i]);
  }
  assert_int_equal(held.early, 0);
  assert_int_equal(held.begun, 0);
}

static void large_ones_are_few(void **state) {
  static uint8_t datagram[60000];
  struct reliable *r = one_of(NULL, sizeof datagram);
  (void)state;
  for (uint32_t n = 2; n < 300; n++) {
    size_t size = data_of(datagram, 5, 0, n, sizeof datagram - RELIABLE_HEADER);
    assert_true(reliable_came(r, datagram, size, 0));
  }
  assert_in_range(r->early_bytes, RELIABLE_EARLY_BYTES - sizeof datagram, RELIABLE_EARLY_BYTES);
  reliable_close(r);
}

static void messages_of_a_bound(void **state) {
  struct reliable_held held = {.early_max = 1000};
  struct reliable *r = one_of(&held, MTU);
  uint8_t datagram[MTU], message[1001] = {0};
  (void)state;
  for (uint32_t n = 1; n < 9; n++) {
    assert_true(reliable_came(r, datagram, data_of(datagram, 5, RELIABLE_MORE, n, 100), n));
  }
  assert_int_equal(held.begun, 800 + RELIABLE_ROOM);
  assert_true(reliable_begun_at(r) == 1);
  assert_true(reliable_came(r, datagram, data_of(datagram, 5, 0, 9, 200), 9));
  assert_int_equal(held.begun, 0);
  assert_true(reliable_begun_at(r) == INFINITY);
  assert_int_equal(messages_of(r), 1);
  assert_true(reliable_came(r, datagram, data_of(datagram, 5, RELIABLE_MORE, 10, 100), 10));
  assert_true(reliable_came(r, datagram, data_of(datagram, 5, RELIABLE_END, 11, 0), 11));
  assert_int_equal(held.begun, 0); /* it will never be whole */
  assert_false(reliable_answered(r));
  reliable_close(r);
  r = one_of(&held, MTU);
  assert_true(reliable_came(r, datagram, data_of(datagram, 5, RELIABLE_MORE, 1, 900), 0));
  assert_false(reliable_came(r, datagram, data_of(datagram, 5, 0, 2, 101), 0));
  assert_string_equal(reliable_why(r), "reliable: a message of more than 1000 bytes came");
  reliable_close(r);
  assert_int_equal(held.begun, 0);
  r = one_of(&held, MTU);
  assert_true(reliable_send(r, message, 1000, 0));
  assert_false(reliable_send(r, message, 1001, 0));
  assert_string_equal(reliable_why(r), "reliable: a message of 1001 bytes, more than 1000");
  reliable_close(r);
}

static int64_t ups(int64_t said) {
  assert_true(said >= 0);
  return said >> RELIABLE_PIPE_UPS & 0xffffff;
}

/* Gives one end's datagrams to the other: how many messages came of them, whose bytes are added up. */
static int64_t give_all(struct reliable_pipe *from, int64_t said, struct reliable_pipe *to, double now,
                        size_t *bytes) {
  struct {
    struct reliable_pipe *pipe;
    int64_t said;
  } end[2] = {{from, said}, {to, 0}};
  int64_t messages = 0;
  for (int side = 0; end[side].said >> RELIABLE_PIPE_DOWNS > 0; side = !side) {
    int64_t skip = ups(end[side].said), count = end[side].said >> RELIABLE_PIPE_DOWNS;
    size_t all = end[side].pipe->size, at = 0;
    uint8_t *kept = malloc(all); /* exactly: a sanitizer sees what is read beyond it */
    uint32_t *sizes = malloc((size_t)(skip + count) * sizeof *sizes);
    assert_true(kept != NULL && sizes != NULL);
    memcpy(kept, end[side].pipe->bytes, all);
    memcpy(sizes, end[side].pipe->sizes, (size_t)(skip + count) * sizeof *sizes);
    reliable_pipe_taken(end[side].pipe);
    end[!side].said = 0;
    for (int64_t i = 0; i < skip + count; i++) {
      if (i >= skip) {
        int64_t now_said = reliable_pipe_up(end[!side].pipe, kept + at, sizes[i], now);
        for (int64_t m = 0; m < ups(now_said); m++) {
          *bytes += end[!side].pipe->sizes[m];
        }
        messages += ups(now_said);
        end[!side].said = now_said; /* of the last one: what is lost of the others is said again */
      }
      at += sizes[i];
    }
    assert_int_equal(at, all);
    free(kept);
    free(sizes);
  }
  return messages;
}

static void what_python_has(void **state) {
  (void)state;
  struct reliable_pipe *client = reliable_pipe_open(0, MTU, 30, 7, 1, 0, NULL);
  struct reliable_pipe *server = reliable_pipe_open(1, MTU, 30, 0, 1, 0, NULL);
  assert_true(client != NULL && server != NULL);
  assert_null(reliable_pipe_open(0, 1, 30, 7, 1, 0, NULL));
  size_t bytes = 0;
  double now = 1;
  assert_int_equal(ups(reliable_pipe_start(server, now)), 0);
  assert_true(server->deadline == INFINITY);
  assert_int_equal(give_all(client, reliable_pipe_start(client, now), server, now, &bytes), 0);
  static uint8_t message[100000];
  int64_t messages = 0;
  for (int i = 0; i < 20; i++) {
    int64_t said = reliable_pipe_down(client, message, sizeof message, now);
    messages += give_all(client, said, server, now, &bytes);
  }
  for (int i = 0; i < 1000 && client->deadline < INFINITY; i++) {
    now = client->deadline;
    messages += give_all(client, reliable_pipe_tick(client, now), server, now, &bytes);
  }
  assert_int_equal(messages, 20);
  assert_int_equal(bytes, 20 * sizeof message);
  struct whole *busy = whole_of(client);
  assert_false(atomic_flag_test_and_set(&busy->busy)); /* another thread is at it */
  assert_int_equal(reliable_pipe_tick(client, now), -2);
  atomic_flag_clear(&busy->busy);
  assert_int_equal(reliable_pipe_down_end(client, now) & RELIABLE_PIPE_LINGERS, RELIABLE_PIPE_LINGERS);
  assert_int_equal(reliable_pipe_down(client, message, 1, now), -1);
  assert_string_equal(reliable_pipe_why(client), "reliable: a message after the end");
  reliable_pipe_close(client);
  reliable_pipe_close(server);
}

static void what_cannot_be_opened(void **state) {
  (void)state;
  struct reliable_config config = {.mtu = RELIABLE_MTU_MIN - 1, .connection = 1, .give_up = 5, .first = 1};
  assert_null(reliable_open(&config));
  config.mtu = RELIABLE_MTU_MAX + 1;
  assert_null(reliable_open(&config));
  reliable_close(NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(everything_arrives),        cmocka_unit_test(numbers_go_around),
      cmocka_unit_test(it_begins_with_ten),        cmocka_unit_test(it_waits_longer_each_time),
      cmocka_unit_test(a_silent_end_is_given_up),  cmocka_unit_test(what_is_overtaken_is_sent_again),
      cmocka_unit_test(strangers_are_ignored),     cmocka_unit_test(memory_is_bounded),
      cmocka_unit_test(a_message_that_has_no_end), cmocka_unit_test(what_python_has),
      cmocka_unit_test(all_hold_so_much),          cmocka_unit_test(large_ones_are_few),
      cmocka_unit_test(messages_of_a_bound),       cmocka_unit_test(what_cannot_be_opened),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
