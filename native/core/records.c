#include "records.h"

#include <stdlib.h>
#include <string.h>

#include "libcrypto.h"

enum {
  IV = 12,
  TAG = 16,
  SECRET_MAX = 48,
  KEY_MAX = 32,
  TYPE_ALERT = 21,
  TYPE_HANDSHAKE = 22,
  TYPE_DATA = 23,
  ALERT_CLOSE_NOTIFY = 0,
  HANDSHAKE_TICKET = 4,
  HANDSHAKE_KEY_UPDATE = 24,
  GET_TAG = 0x10, /* EVP_CTRL_AEAD_* */
  SET_TAG = 0x11,
};
#define REKEY_AFTER (UINT64_C(1) << 23) /* records: half of what AES-GCM is good for (RFC 8446, 5.5) */

struct suite {
  uint32_t number; /* RFC 8446, B.4 */
  const char *cipher;
  const char *hash;
  size_t key_size;
  size_t secret_size;
};
static const struct suite suites[] = {
    {0x1301, "AES-128-GCM", "SHA256", 16, 32},
    {0x1302, "AES-256-GCM", "SHA384", 32, 48},
    {0x1303, "ChaCha20-Poly1305", "SHA256", 32, 32},
};

struct record_keys {
  const struct suite *suite;
  EVP_CIPHER_CTX *context[2]; /* [BERTHA_RECORDS_*] */
  uint8_t iv[2][IV];
};

static const struct suite *suite_of(uint32_t number) {
  for (size_t i = 0; i < sizeof suites / sizeof *suites; i++) {
    if (suites[i].number == number) {
      return &suites[i];
    }
  }
  return NULL;
}

/* HKDF-Expand-Label (RFC 8446, 7.1) of no more than a hash's length, which is one HMAC (RFC 5869, 2.3). */
static bool expand(const struct suite *s, const uint8_t *secret, const char *label, uint8_t *to,
                   size_t size) {
  const struct libcrypto *lib = libcrypto();
  uint8_t info[64];
  uint8_t whole[64];
  size_t n = 0, made = 0;
  size_t label_size = strlen(label);
  info[n++] = (uint8_t)(size >> 8);
  info[n++] = (uint8_t)size;
  info[n++] = (uint8_t)(label_size + 6);
  memcpy(info + n, "tls13 ", 6);
  memcpy(info + n + 6, label, label_size);
  n += label_size + 6;
  info[n++] = 0; /* no context */
  info[n++] = 1; /* HKDF's first block */
  bool good = lib->EVP_Q_mac(lib->library, "HMAC", NULL, s->hash, NULL, secret, s->secret_size, info, n,
                             whole, sizeof whole, &made) != NULL &&
              made >= size;
  if (good) {
    memcpy(to, whole, size);
  }
  explicit_bzero(whole, sizeof whole);
  return good;
}

static bool set_keys(struct record_keys *k, const struct bertha_records *r, int which) {
  const struct libcrypto *lib = libcrypto();
  uint8_t key[KEY_MAX];
  bool good =
      expand(k->suite, r->secret[which], "key", key, k->suite->key_size) &&
      expand(k->suite, r->secret[which], "iv", k->iv[which], IV) &&
      lib->EVP_CipherInit_ex(k->context[which], NULL, NULL, key, NULL, which == BERTHA_RECORDS_OUT) == 1;
  explicit_bzero(key, sizeof key);
  return good;
}

struct record_keys *records_open(const struct bertha_records *r) {
  static EVP_CIPHER *_Atomic ciphers[sizeof suites / sizeof *suites];
  const struct suite *s = suite_of(r->suite);
  const struct libcrypto *lib = s != NULL ? libcrypto() : NULL;
  struct record_keys *k = lib != NULL ? calloc(1, sizeof *k) : NULL;
  if (k == NULL) {
    return NULL;
  }
  EVP_CIPHER *_Atomic *at = &ciphers[s - suites];
  EVP_CIPHER *cipher = atomic_load(at);
  if (cipher == NULL) { /* by two threads at once: one of the two is not freed */
    cipher = lib->EVP_CIPHER_fetch(lib->library, s->cipher, NULL);
    atomic_store(at, cipher);
  }
  k->suite = s;
  bool good = cipher != NULL;
  for (int i = 0; i < 2 && good; i++) {
    k->context[i] = lib->EVP_CIPHER_CTX_new();
    good = k->context[i] != NULL &&
           lib->EVP_CipherInit_ex(k->context[i], cipher, NULL, NULL, NULL, i == BERTHA_RECORDS_OUT) == 1 &&
           set_keys(k, r, i);
  }
  if (!good) {
    records_close(k);
    k = NULL;
  }
  return k;
}

void records_close(struct record_keys *k) {
  if (k == NULL) {
    return;
  }
  const struct libcrypto *lib = libcrypto();
  for (int i = 0; i < 2; i++) {
    lib->EVP_CIPHER_CTX_free(k->context[i]);
  }
  explicit_bzero(k->iv, sizeof k->iv);
  free(k);
}

/* RFC 8446, 7.2 */
static bool update(struct record_keys *k, struct bertha_records *r, int which) {
  uint8_t next[SECRET_MAX];
  bool good = expand(k->suite, r->secret[which], "traffic upd", next, k->suite->secret_size);
  if (good) {
    memcpy(r->secret[which], next, k->suite->secret_size);
    r->sequence[which] = 0;
    good = set_keys(k, r, which);
  }
  explicit_bzero(next, sizeof next);
  return good;
}

/* RFC 8446, 5.3 */
static void nonce(const struct record_keys *k, const struct bertha_records *r, int which, uint8_t to[IV]) {
  memcpy(to, k->iv[which], IV);
  for (int i = 0; i < 8; i++) {
    to[IV - 1 - i] ^= (uint8_t)(r->sequence[which] >> (8 * i));
  }
}

static void head(uint8_t *to, size_t size) {
  to[0] = TYPE_DATA;
  to[1] = 3;
  to[2] = 3;
  to[3] = (uint8_t)(size >> 8);
  to[4] = (uint8_t)size;
}

static size_t seal(struct record_keys *k, struct bertha_records *r, uint8_t type, const void *first,
                   size_t first_size, const void *second, size_t second_size, uint8_t *to) {
  const struct libcrypto *lib = libcrypto();
  EVP_CIPHER_CTX *e = k->context[BERTHA_RECORDS_OUT];
  size_t body = first_size + second_size + 1 + TAG;
  uint8_t iv[IV];
  uint8_t *at = to + RECORD_HEAD;
  int n = 0;
  head(to, body);
  nonce(k, r, BERTHA_RECORDS_OUT, iv);
  bool good = lib->EVP_CipherInit_ex(e, NULL, NULL, NULL, iv, 1) == 1 &&
              lib->EVP_CipherUpdate(e, NULL, &n, to, RECORD_HEAD) == 1 &&
              lib->EVP_CipherUpdate(e, at, &n, first, (int)first_size) == 1;
  at += first_size;
  good = good && (second_size == 0 || lib->EVP_CipherUpdate(e, at, &n, second, (int)second_size) == 1);
  at += second_size;
  good = good && lib->EVP_CipherUpdate(e, at, &n, &type, 1) == 1;
  at += 1;
  good =
      good && lib->EVP_CipherFinal_ex(e, at, &n) == 1 && lib->EVP_CIPHER_CTX_ctrl(e, GET_TAG, TAG, at) == 1;
  if (!good) {
    return 0;
  }
  r->sequence[BERTHA_RECORDS_OUT]++;
  return RECORD_HEAD + body;
}

static size_t key_update(struct record_keys *k, struct bertha_records *r, uint8_t *to) {
  static const uint8_t message[] = {HANDSHAKE_KEY_UPDATE, 0, 0, 1, 0 /* not asked of the other end */};
  size_t n = seal(k, r, TYPE_HANDSHAKE, message, sizeof message, NULL, 0, to);
  return n > 0 && update(k, r, BERTHA_RECORDS_OUT) ? n : 0;
}

size_t record_seal(struct record_keys *k, struct bertha_records *r, const void *first, size_t first_size,
                   const void *second, size_t second_size, uint8_t *to) {
  size_t before = 0;
  if (r->sequence[BERTHA_RECORDS_OUT] >= REKEY_AFTER) {
    before = key_update(k, r, to);
    if (before == 0) {
      return 0;
    }
  }
  size_t n = seal(k, r, TYPE_DATA, first, first_size, second, second_size, to + before);
  return n > 0 ? before + n : 0;
}

size_t record_close_notify(struct record_keys *k, struct bertha_records *r, uint8_t *to) {
  static const uint8_t alert[] = {1 /* warning */, ALERT_CLOSE_NOTIFY};
  return seal(k, r, TYPE_ALERT, alert, sizeof alert, NULL, 0, to);
}

size_t record_size(const uint8_t *in, size_t have) {
  if (have < RECORD_HEAD) {
    return have > 0 && in[0] != TYPE_DATA ? SIZE_MAX : 0;
  }
  size_t body = (size_t)in[3] << 8 | in[4];
  bool good = in[0] == TYPE_DATA && in[1] == 3 && body > TAG && body <= RECORD_MAX - RECORD_HEAD;
  return good ? RECORD_HEAD + body : SIZE_MAX;
}

/* The content with its type, and zeros behind that (RFC 8446, 5.2): its size with the type, 0: it is not what was sealed. */
static size_t open_body(struct record_keys *k, struct bertha_records *r, const uint8_t *in, size_t size,
                        uint8_t *to) {
  const struct libcrypto *lib = libcrypto();
  EVP_CIPHER_CTX *e = k->context[BERTHA_RECORDS_IN];
  size_t inner = size - RECORD_HEAD - TAG;
  uint8_t iv[IV], tag[TAG], none[1];
  int n = 0;
  memcpy(tag, in + size - TAG, TAG);
  nonce(k, r, BERTHA_RECORDS_IN, iv);
  bool good = lib->EVP_CipherInit_ex(e, NULL, NULL, NULL, iv, 0) == 1 &&
              lib->EVP_CipherUpdate(e, NULL, &n, in, RECORD_HEAD) == 1 &&
              lib->EVP_CIPHER_CTX_ctrl(e, SET_TAG, TAG, tag) == 1 &&
              lib->EVP_CipherUpdate(e, to, &n, in + RECORD_HEAD, (int)inner) == 1 &&
              lib->EVP_CipherFinal_ex(e, none, &n) == 1;
  while (good && inner > 0 && to[inner - 1] == 0) {
    inner--;
  }
  if (!good || inner == 0 || inner - 1 > RECORD_BYTES_MAX) {
    return 0;
  }
  r->sequence[BERTHA_RECORDS_IN]++;
  return inner;
}

static enum record_what handshake(struct record_keys *k, struct bertha_records *r, const uint8_t *message,
                                  size_t n, uint8_t *reply, size_t *reply_size, const char **why) {
  if (n > 0 && message[0] == HANDSHAKE_TICKET) {
    return RECORD_BYTES; /* every connection proves itself */
  }
  *why = "encrypt: a handshake message that is not expected";
  if (n != 5 || message[0] != HANDSHAKE_KEY_UPDATE || message[4] > 1 || !update(k, r, BERTHA_RECORDS_IN)) {
    return RECORD_BAD;
  }
  if (message[4] == 1) {
    *reply_size = key_update(k, r, reply);
    return *reply_size > 0 ? RECORD_BYTES : RECORD_BAD;
  }
  return RECORD_BYTES;
}

enum record_what record_open(struct record_keys *k, struct bertha_records *r, const uint8_t *in, size_t size,
                             uint8_t *to, size_t *n, uint8_t *reply, size_t *reply_size, const char **why) {
  *n = *reply_size = 0;
  size_t inner = open_body(k, r, in, size, to);
  if (inner == 0) {
    *why = "encrypt: bad record mac";
    return RECORD_BAD;
  }
  uint8_t type = to[inner - 1];
  if (type == TYPE_DATA) {
    *n = inner - 1;
    return RECORD_BYTES;
  }
  if (type == TYPE_HANDSHAKE) {
    return handshake(k, r, to, inner - 1, reply, reply_size, why);
  }
  if (type == TYPE_ALERT && inner == 3 && to[1] == ALERT_CLOSE_NOTIFY) {
    return RECORD_END;
  }
  *why = type == TYPE_ALERT ? "encrypt: the other end has sent an alert"
                            : "encrypt: a record of a type that is not known";
  return RECORD_BAD;
}
