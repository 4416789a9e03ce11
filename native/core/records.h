/* TLS 1.3's record layer once the handshake is over (RFC 8446, 5), on the secrets that the handshake has left.
 *
 * OpenSSL does not let a connection go on in another process: so what comes after the handshake is here, and only the ciphers
 * are OpenSSL's.  The program does this for itself (borrow.c), and its carrier, when the connection is back there. */
#ifndef BERTHA_RECORDS_H
#define BERTHA_RECORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layout.h"

enum {
  RECORD_HEAD = 5,
  RECORD_BYTES_MAX = 1 << 14,                        /* of plaintext in one record */
  RECORD_MAX = RECORD_HEAD + RECORD_BYTES_MAX + 256, /* a whole one */
  RECORD_MORE = RECORD_HEAD + 1 + 16,                /* that our own are longer than what they carry */
  RECORD_REPLY_MAX = 64,                             /* what has to be answered to a record */
};

/* What an end of a connection seals and opens with, in this process; its place among the records is in `struct
 * bertha_records`, which may be shared. */
struct record_keys;
struct record_keys *
records_open(const struct bertha_records *r); /* NULL: no libcrypto, no memory, no such suite */
void records_close(struct record_keys *k);

/* Seals up to RECORD_BYTES_MAX bytes, in two parts, into one record (before it a KeyUpdate, when it is time for that): how many
 * bytes are at `to`, where there is room for RECORD_REPLY_MAX + RECORD_MORE more than those; 0: it cannot be done. */
size_t record_seal(struct record_keys *k, struct bertha_records *r, const void *first, size_t first_size,
                   const void *second, size_t second_size, uint8_t *to);
size_t record_close_notify(struct record_keys *k, struct bertha_records *r, uint8_t *to);

/* Of a whole record at `in`; 0: more has to come to know, SIZE_MAX: it is none. */
size_t record_size(const uint8_t *in, size_t have);

enum record_what {
  RECORD_BYTES = 0, /* `*n` of them, which may be 0 */
  RECORD_END = 1,   /* close_notify */
  RECORD_BAD = 2,   /* `*why` */
};
/* Opens a whole record of that size.  `to` has room for `size` bytes.  `reply` has room for RECORD_REPLY_MAX: what is to be
 * sent on account of it, `*reply_size` bytes. */
enum record_what record_open(struct record_keys *k, struct bertha_records *r, const uint8_t *in, size_t size,
                             uint8_t *to, size_t *n, uint8_t *reply, size_t *reply_size, const char **why);

#endif
