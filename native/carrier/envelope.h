/* What two carriers say of datagrams: wire "bdg/1", which bertha_socket/carrier/envelope.py describes.  Whatever comes is a
 * stranger's. */
#ifndef BERTHA_ENVELOPE_H
#define BERTHA_ENVELOPE_H

#include "session.h"

enum envelope_kind {
  ENVELOPE_HELLO = 1,
  ENVELOPE_ACCEPT = 2,
  ENVELOPE_REFUSE = 3,
  ENVELOPE_DATA = 4,
  ENVELOPE_UNKNOWN = 5,
  ENVELOPE_ASK = 6,
  ENVELOPE_ANSWER = 7,
  ENVELOPE_END = 8,
};

enum { ENVELOPE_HEAD = 13, ENVELOPE_HELLO_MAX = 1200, ENVELOPE_WHY_MAX = 400 };

struct envelope {
  enum envelope_kind kind;
  uint64_t session;
  const uint8_t *body;
  size_t size;
};

/* Whether a carrier has sent this, sense or not. */
bool envelope_is_ours(const uint8_t *data, size_t size);
bool envelope_open(const uint8_t *data, size_t size, struct envelope *e);
void envelope_seal(uint8_t head[ENVELOPE_HEAD], enum envelope_kind kind, uint64_t session);

/* These append a datagram; false: no memory. */
bool envelope_hello(struct buffer *to, uint64_t session, const uint8_t *plan, size_t size,
                    const struct secrets *k);
bool envelope_accept(struct buffer *to, uint64_t session, const uint8_t *plan, size_t size,
                     const struct secrets *k);
bool envelope_refuse(struct buffer *to, uint64_t session, const char *why);

/* The plan in a HELLO, or why the client is not to be believed; neither: it makes no sense, and gets no answer. */
bool envelope_read_hello(const struct envelope *e, const struct secrets *k, struct pack_value *plan,
                         const char **why);
/* Whether this is the yes of somebody who has the key; anything else is as if it had not come. */
bool envelope_is_accepted(const struct envelope *e, const uint8_t *plan, size_t size,
                          const struct secrets *k);
void envelope_why_refused(const struct envelope *e, char *to, size_t room); /* made printable */

#endif
