/* An agent that answers anything: wrong lengths, other messages, descriptors where none belong or of the wrong sort. */
#include "../core/agentc.c" /* its connection */

#define here carried_here
#include "../core/carriers.c"
#include "../core/carried.c" /* what it makes of plans and carriers */
#include "../core/plans.c"
#undef here

#include "rig.h"

enum { DESCRIPTORS = 1100 };

static int some_descriptor(uint8_t kind) {
  struct bertha_link_header h;
  switch (kind % 5) {
  case 0:
    return open("/dev/null", O_RDWR | O_CLOEXEC);
  case 1:
    return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  case 2: /* a link, or claims too small */
    rig_header(&h, 1, 4096);
    return rig_memory((void *)&h, sizeof h, h.total_size, F_SEAL_SHRINK);
  case 3: { /* sound claims */
    struct bertha_claims_header claims = {.magic = BERTHA_MAGIC_CLAIM,
                                          .version = BERTHA_LAYOUT_VERSION,
                                          .listener = 7,
                                          .bucket_count = BERTHA_CLAIM_BUCKETS};
    return rig_memory((void *)&claims, sizeof claims,
                      sizeof claims + BERTHA_CLAIM_BUCKETS * sizeof(struct bertha_claims_bucket),
                      F_SEAL_SHRINK);
  }
  default:
    return dup(0);
  }
}

/* What the agent will have said before it is asked: it lies in the socket. */
static size_t answer(int to, const uint8_t *data, size_t size, uint16_t op, uint32_t seq) {
  if (size < 4) {
    return size;
  }
  uint8_t how = data[0];
  int count = data[1] % 7;
  size_t length = data[2] % 64;
  size_t used = 4 + length < size ? 4 + length : size;
  struct {
    struct bertha_msg head;
    uint8_t body[640];
  } message = {{BERTHA_MSG_MAGIC, BERTHA_PROTOCOL_VERSION, op, seq, 0}, {0}};
  if (how & 1) { /* sound, but for its body and descriptors */
    struct bertha_link_reply reply = {.listener = 7, .index = 1, .plan = {BERTHA_IMPL_SHM, data[3], 0, 0}};
    memcpy(message.body, &reply, sizeof reply);
    memcpy(message.body + data[3] % 40, data + 4, used - 4);
    length = how & 2 ? sizeof reply : how & 4 ? sizeof(struct bertha_bell) : length;
    if (op == BERTHA_OP_HELLO) {
      length = how & 8 ? length : sizeof(struct bertha_hello_reply);
    } else if (op == BERTHA_OP_CARRIER) {
      length = how & 8 ? length : sizeof(struct bertha_carrier_request);
    } else if (op ==
               BERTHA_OP_NEGOTIATE) { /* its words are the input's, its length what it says, or nearly */
      struct bertha_negotiate_reply plan = {
          .verdict = data[3] % 5, .carrier = data[3] >> 4, .valid_ms = 1000};
      memset(plan.detail, how & 32 ? 'x' : 0, sizeof plan.detail);
      plan.plan_size = how & 8 ? data[2] * 0x01010101u : data[2] % 120;
      memcpy(message.body, &plan, sizeof plan);
      memcpy(message.body + sizeof plan, data + 4, used - 4);
      length = sizeof plan + data[2] % 120 + (how & 2 ? 1 : 0);
    }
    length += sizeof message.head;
    message.head.status = how & 64 ? data[3] : 0;
  } else {
    memcpy(&message, data + 4, used - 4);
  }
  int fds[8];
  for (int i = 0; i < count; i++) {
    fds[i] = some_descriptor((uint8_t)(data[3] + i * (how >> 4)));
  }
  rig_post(to, &message, length, fds, count);
  return used;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 5) {
    return 0;
  }
  static const uint16_t ops[] = {BERTHA_OP_LISTEN,   BERTHA_OP_CONNECT,  BERTHA_OP_LINK,
                                 BERTHA_OP_BELL_NEW, BERTHA_OP_BELL_GET, BERTHA_OP_RESOLVE,
                                 BERTHA_OP_HELLO,    BERTHA_OP_CARRIER,  BERTHA_OP_NEGOTIATE};
  uint16_t op = ops[data[0] % (sizeof ops / sizeof *ops)];
  int pair[2];
  rig_check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
  agent.fd = bertha_hide_fd(pair[0]);
  agent.pid = bertha.pid;
  agent.not_before = 0;
  answer(pair[1], data + 1, size - 1, op, agent.seq + 1);
  shutdown(pair[1], SHUT_WR); /* nothing more: no wait for it */
  int before = rig_descriptors(DESCRIPTORS);
  int fds[3] = {-1, -1, -1};
  uint8_t reply[64];
  if (data[0] & 64) { /* the plain call */
    uint32_t status = agent_call((enum bertha_op)op, reply, 16, NULL, 0, reply, data[0] & 1 ? 40 : 8, fds, 3);
    for (int i = 0; i < 3; i++) {
      if (fds[i] >= 0) {
        if (status != 0) {
          abort(); /* who would close it? */
        }
        close(fds[i]);
      }
    }
    if (rig_descriptors(DESCRIPTORS) + (agent.fd < 0) != before) {
      abort();
    }
  } else {
    uint32_t why;
    uint8_t addr[16] = {0};
    int fd;
    struct listener *l;
    switch (op) {
    case BERTHA_OP_HELLO: { /* as dial() does it, but for the connection */
      struct bertha_hello_reply hello;
      uint32_t status = 0;
      if (exchange(BERTHA_OP_HELLO, &hello, 16, NULL, 0, &hello, sizeof hello, NULL, 0, &status) == 0 &&
          rig_descriptors(DESCRIPTORS) != before) {
        abort();
      }
      break;
    }
    case BERTHA_OP_CARRIER:
      if (open_carrier(data[0] & 1)) {
        extern void bertha_close_hidden(int);
        bertha_close_hidden(carried_here.carriers[data[0] & 1].fd);
        carried_here.carriers[data[0] & 1].fd = 0;
      }
      break;
    case BERTHA_OP_NEGOTIATE: {
      struct plan *plan = ask(addr, 80, AF_INET, -1, data[0] & 2, data[0] & 1);
      if (plan != NULL) {
        uint8_t *copy = malloc(plan->size + 1); /* all of it is there */
        memcpy(copy, plan->bytes, plan->size);
        free(copy);
        if (plan->size > BERTHA_CARRIER_PLAN_MAX || memchr(plan->detail, 0, sizeof plan->detail) == NULL) {
          abort();
        }
        free(plan->bytes);
        free(plan);
      }
      break;
    }
    case BERTHA_OP_LISTEN:
      fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      listener_register(fd, &why);
      close(fd);
      break;
    case BERTHA_OP_CONNECT: {
      static uint64_t listener = 1000; /* a refusal is remembered */
      struct link *to = link_to(NULL, listener++, addr, 80, 1, &why);
      if (to != NULL) {
        atomic_fetch_sub(&to->pairs, 1);
      }
      break;
    }
    case BERTHA_OP_LINK:
      l = listener_get(7);
      if (l != NULL) {
        link_fetch(l, (uint32_t)data[0] + 2, &why);
      }
      break;
    default:
      if (bell_create(&fd) != 0) {
        extern void bertha_close_hidden(int);
        bertha_close_hidden(fd);
      }
    }
  }
  close(pair[1]);
  hang_up(false);
  return 0;
}
