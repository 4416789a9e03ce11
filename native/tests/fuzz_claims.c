/* Clients of a listener write what they like into its claims, and into the links that these name: hints that lead
 * nowhere, to other slots, to claims in any state.  A server's connection is tied to a slot or is not; nothing is read
 * or written elsewhere, and the claims' functions come back. */
#include "rig.h"

#include <sys/prctl.h>
#include <sys/wait.h>

enum { SLOTS = 4, RING = 4096 };

static struct bertha_claims_header *claims;
static struct link *serving;
static struct listener listener = {.id = 7};

/* A link as the agent would pass it, and a process that holds it as its client does. */
static void open_link(void) {
  struct bertha_link_header h;
  rig_header(&h, SLOTS, RING);
  int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  rig_check(fd >= 0 && ftruncate(fd, (off_t)h.total_size) == 0, "memfd");
  rig_check(pwrite(fd, (void *)&h, sizeof h, 0) == sizeof h, "pwrite");
  rig_check(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0, "seal");
  int held[2];
  rig_check(pipe(held) == 0, "pipe");
  pid_t child = fork();
  rig_check(child >= 0, "fork");
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
    char good = fcntl(fd, F_SETLK, &lock) == 0;
    if (write(held[1], &good, 1) == 1) {
      for (;;) {
        pause();
      }
    }
    _exit(1);
  }
  char good = 0;
  rig_check(read(held[0], &good, 1) == 1 && good, "a holder");
  close(held[0]);
  close(held[1]);
  struct bertha_link_reply reply = {.listener = 7,
                                    .index = 1,
                                    .plan = {BERTHA_IMPL_SHM, 0, 0, 0},
                                    .claimant = {.proof = BERTHA_PROOF_NONE}};
  serving = link_adopt(fd, BERTHA_SIDE_SERVER, &reply);
  rig_check(serving != NULL, "link_adopt");
}

static uint64_t a_word(uint32_t tag, const uint8_t **at, const uint8_t *end) {
  uint64_t random = 0;
  uint8_t how = *at < end ? *(*at)++ : 0;
  for (int i = 0; i < 4 && *at < end; i++) {
    random = random << 8 | *(*at)++;
  }
  switch (how % 4) {
  case 0:
    return bertha_claim_word(tag, 1, (uint16_t)(how >> 2) % (SLOTS + 1));
  case 1:
    return bertha_claim_word(tag, (uint32_t)random, (uint16_t)(how >> 2));
  case 2:
    return bertha_claim_word(tag, 1, (uint16_t)random);
  default:
    return random * 0x9e3779b97f4a7c15u;
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const size_t bytes = sizeof *claims + BERTHA_CLAIM_BUCKETS * sizeof(struct bertha_claims_bucket);
  const uint8_t *end = data + (size < 200 ? size : 200);
  if (claims == NULL) {
    claims = calloc(1, bytes); /* on the heap, so that the address sanitizer knows its end */
    rig_check(claims != NULL, "calloc");
    open_link();
  }
  claims->magic = BERTHA_MAGIC_CLAIM;
  claims->version = BERTHA_LAYOUT_VERSION;
  claims->listener = 7;
  claims->bucket_count = BERTHA_CLAIM_BUCKETS;
  listener.claims = claims;
  listener.pid = bertha.pid;
  int fd[2];
  tcp_pair(fd);
  struct linger none = {1, 0}; /* no TIME_WAIT: ports would run out */
  setsockopt(fd[0], SOL_SOCKET, SO_LINGER, &none, sizeof none);
  struct sockaddr_storage client, server;
  socklen_t length = sizeof client;
  rig_check(getsockname(fd[0], (struct sockaddr *)&client, &length) == 0, "getsockname");
  length = sizeof server;
  rig_check(getpeername(fd[0], (struct sockaddr *)&server, &length) == 0, "getpeername");
  struct conn *c = conn_new(fd[1], BERTHA_CONN_SOCKET);
  rig_check(c != NULL, "conn_new");
  conn_track(fd[1], c);
  struct bertha_tuple tuple = {.reserved = 0};
  address_of((struct sockaddr *)&client, tuple.client_addr, &tuple.client_port);
  address_of((struct sockaddr *)&server, tuple.server_addr, &tuple.server_port);
  uint32_t tag = tuple_tag(tuple.client_addr, tuple.client_port);
  uint64_t words[2 * BERTHA_CLAIM_WAYS];
  bool accepted = false;
  while (data < end) {
    uint8_t what = *data++;
    struct bertha_slot *s = &serving->slots[(what >> 4) % SLOTS];
    uint64_t word;
    switch (what % 12) {
    case 0:
    case 1:
      word = a_word(tag, &data, end);
      claim_publish(claims, tag, word);
      break;
    case 2:
      word = a_word(tag, &data, end);
      claim_withdraw(claims, what & 16 ? tag : (uint32_t)word, word);
      break;
    case 3: /* past the functions: any bucket, the header too */
      word = a_word(tag, &data, end);
      memcpy((uint8_t *)claims + (data < end ? (size_t)*data * 8191 % (bytes - 8) : 0), &word, 8);
      claims->listener = 7;
      break;
    case 4:
      atomic_store(&claims->dag, what & 16 ? BERTHA_DAG_NONE : (uint32_t)what >> 6);
      break;
    case 5: /* a sound claim */
      slot_reset(s);
      s->tuple = tuple;
      atomic_store(&s->state, BERTHA_SLOT_WORD(1, BERTHA_SLOT_CLAIMED));
      break;
    case 6:
      atomic_store(&s->state, a_word(tag, &data, end) & UINT32_MAX);
      break;
    case 7:
      for (uint8_t *p = (uint8_t *)s; data < end && what-- > 0 && p < (uint8_t *)(s + 1); p += 7) {
        *p = *data++;
      }
      break;
    case 8:
      if (!accepted) {
        conn_accepted(c, fd[1], &listener, (struct sockaddr *)&client);
        accepted = true;
      } else {
        conn_ripe(c, fd[1]);
      }
      break;
    case 9:
      if (claim_find(claims, tag, words) > 2 * BERTHA_CLAIM_WAYS) {
        abort();
      }
      break;
    default:
      if (accepted) {
        char byte;
        struct iovec part = {&byte, 1};
        stream_recv(c, fd[1], &part, 1, MSG_DONTWAIT);
      }
    }
  }
  conn_forget(fd[1]);
  atomic_store(&c->info.refs, 0);
  conn_free(c);
  close(fd[0]);
  close(fd[1]);
  memset((void *)claims, 0, bytes);
  memset((void *)serving->header, 0, 64);
  for (uint32_t i = 0; i < SLOTS; i++) {
    memset((void *)&serving->slots[i], 0, sizeof serving->slots[i]);
  }
  return 0;
}
