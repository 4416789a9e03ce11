/* The carriers that this process knows, and its rings to them. */
#ifndef BERTHA_CARRIERS_H
#define BERTHA_CARRIERS_H

#include "../carrier/carrier.h"
#include "shim.h"

/* Where a connection's rings are to be. */
struct place {
  struct link *link; /* NULL: it does without */
  uint32_t number;
  int slot;
  int bell;         /* of that slot; -1: it is the link's */
  uint32_t why;     /* enum bertha_reason */
  uint32_t spin_us; /* what is wanted: a link whose bound is this; UINT32_MAX: none */
};
/* Sends a connection to a carrier; one that is gone, or knows an agent that is gone, is replaced.  `place->link` says
 * whether a ring is wanted (then `spin_us`: in what kind of link), and then whether there is one. */
bool carrier_carry(uint32_t which, const struct bertha_carrier_carry *head, const void *plan, int tcp,
                   int end, struct place *place);
/* One message with descriptors; false: there is nobody, or he has no room for it for long. */
bool carrier_tell(int to, const void *message, size_t size, const int *fds, size_t count);
/* What carriers write about connections, by the connections' numbers; NULL: none are open yet. */
struct bertha_carrier_status *carrier_statuses(void);
bool carrier_open_statuses(void);

#endif
