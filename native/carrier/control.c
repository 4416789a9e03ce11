/* The agent's end of a carrier: shims and secrets come by it, questions and verdicts about plans go by it, in msgpack. */
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "datagrams.h"

enum { MESSAGE_MAX = 1 << 17 /* agent/carriers.py */ };

static int control = -1;

void control_begin(int fd) {
  control = fd;
}

int carrier_control(void) {
  return control;
}

bool carrier_has_agent(void) {
  return control >= 0;
}

static void agent_gone(void) {
  if (control >= 0) {
    close(control);
    control = -1;
    carrier_unanswered();
    datagrams_agent_gone();
  }
}

/* The kernel has said it to the agent.  Not said: nobody's, who has what everybody has. */
static uint64_t user_of(const struct pack_value *message) {
  struct pack_value uid;
  return pack_get(message, "uid", &uid) && uid.kind == PACK_INT && uid.number <= UINT32_MAX ? uid.number
                                                                                            : NO_UID;
}

static void verdict(const struct pack_value *message) {
  struct pack_value id, ok, reason;
  if (!pack_get(message, "id", &id) || id.kind != PACK_INT) {
    return;
  }
  bool good = pack_get(message, "ok", &ok) && ok.kind == PACK_BOOL && ok.number == 1;
  char text[400] = "the plan is not acceptable here";
  if (pack_get(message, "why", &reason) && reason.kind == PACK_TEXT && reason.size > 0) {
    pack_copy(&reason, text, sizeof text);
  }
  struct session *s = carrier_asked(id.number);
  if (s == NULL) {
    exchange_verdict(id.number, good, text);
    return;
  }
  trust_remember(s->listener, s->plan, s->plan_size, good);
  for (; s != NULL; s = carrier_asked(id.number)) {
    const char *why = "";
    if (greeting_verdict(s, good, text, &why)) {
      carrier_queue(s);
    } else {
      session_fail(s, why);
    }
  }
}

/* Whether the agent has more to say than it had room for (agent/carriers.py).  No connection is taken meanwhile: it may
 * be meant to have the secrets that are to come. */
static const uint8_t *behind;

bool control_behind(void) {
  return behind != NULL && __atomic_load_n(behind, __ATOMIC_ACQUIRE) != 0;
}

static void learn_behind(int fd) {
  struct stat st;
  if (behind == NULL && carrier_sealed(fd, &st) && st.st_size > 0) {
    void *p = mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0);
    behind = p != MAP_FAILED ? p : NULL;
  }
}

void control_speaks(void) {
  static uint8_t data[MESSAGE_MAX];
  while (control >= 0) {
    int fds[CARRIER_FDS_MAX], count;
    bool cut;
    ssize_t n = carrier_receive(control, data, sizeof data, fds, &count, &cut);
    if (n < 0) {
      return;
    }
    struct pack_value message, op;
    if (n == 0) { /* also where it says more than there is room for: half of a message is another one */
      carrier_close_all(fds, count);
      agent_gone();
      return;
    }
    if (pack_read(data, (size_t)n, &message) == (size_t)n && pack_get(&message, "op", &op)) {
      if (pack_is(&op, "shim") && count > 0) {
        carrier_new_shim(fds[--count], user_of(&message));
      } else if (pack_is(&op, "behind") && count > 0) {
        learn_behind(fds[0]);
      } else if (pack_is(&op, "context")) {
        trust_learn(&message);
      } else if (pack_is(&op, "plain")) {
        unplanned_learn(&message);
      } else if (pack_is(&op, "verdict")) {
        verdict(&message);
      }
    }
    carrier_close_all(fds, count);
  }
}

bool control_catch_up(void) {
  control_speaks();
  if (control < 0) {
    return false;
  }
  struct pollfd more = {.fd = control, .events = POLLIN};
  poll(&more, 1, 1);
  return true;
}
