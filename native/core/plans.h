/* The agent's answers about destinations (plans.c). */
#ifndef BERTHA_PLANS_H
#define BERTHA_PLANS_H

#include "shim.h"

struct plan {
  uint64_t
      number; /* the same in a child that was forked later, and in no other process: records are shared */
  uint8_t addr[16];
  uint16_t port;
  bool datagrams;
  uint32_t verdict;
  uint32_t carrier;
  uint32_t size;
  uint64_t context;
  uint32_t spin_us; /* UINT32_MAX: no bound */
  uint64_t generation;
  uint32_t news; /* of the directory; a plan holds whatever they are */
  int64_t until;
  uint8_t *bytes;
  bool refused; /* by the server, at a connection: the next answer has to be a new one */
  char detail[400];
  struct plan *kept;
};

struct plan_answer {
  uint64_t number;
  uint32_t verdict;
  char detail[400];
};

/* What is known and good, or the agent's answer; false: it has none. */
bool plan_get(const uint8_t addr[16], uint16_t port, int family, int fd, struct plan_answer *answer);
/* One whose verdict was to go by it: stays as long as the process.  NULL: it is not this process's. */
const struct plan *plan_numbered(uint64_t number);
void plan_detail(uint64_t number, char *to, size_t size); /* empty: there is none any more */
void plan_refused(uint64_t number);                       /* by the server, at a connection */
void plans_after_fork(void);

#endif
