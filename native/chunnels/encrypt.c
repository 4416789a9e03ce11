/* encrypt: TLS 1.3 (RFC 8446) by OpenSSL over memory, each end with a certificate. */
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <stdio.h>

#include "../core/records.h"
#include "chunnel.h"
#include "encrypt.h"

enum { PIECE = 16 * 1024 };
static const unsigned char alpn[] = "\x08"
                                    "bertha/1";

struct encrypt {
  struct chunnel base;
  SSL *tls;
  /* What TLS reads and writes during a call: the session's own buffers, with no copy in between. */
  struct buffer *in;
  struct buffer *out;
  bool notified; /* the other end has said that it ends */
  /* What it takes to go on without OpenSSL's session (encrypt_lend). */
  struct bertha_records records; /* suite: 0: not noted yet */
  uint64_t count[2];             /* records with data, [BERTHA_RECORDS_*] */
  unsigned secrets;              /* how many of the two are noted */
  bool odd;                 /* something else came or went after the handshake: its number is not known */
  struct record_keys *keys; /* instead of `tls`, which is gone */
};

/* In SSLKEYLOGFILE's form: a label, the client's random bytes, the secret, both in hexadecimal. */
static void note_secret(const SSL *tls, const char *line) {
  struct encrypt *e = SSL_get_app_data(tls);
  bool client = strncmp(line, "CLIENT_TRAFFIC_SECRET_0 ", 24) == 0;
  bool server = strncmp(line, "SERVER_TRAFFIC_SECRET_0 ", 24) == 0;
  const char *text = strrchr(line, ' ');
  if (e == NULL || (!client && !server) || text == NULL) {
    return;
  }
  int which = client == (SSL_is_server(tls) == 0) ? BERTHA_RECORDS_OUT : BERTHA_RECORDS_IN;
  size_t size = 0;
  bool good = OPENSSL_hexstr2buf_ex(e->records.secret[which], sizeof e->records.secret[which], &size,
                                    text + 1, '\0') == 1;
  e->secrets += good;
  e->odd |= !good;
}

/* Each record of TLS 1.3 by its inner type; those of the handshake have keys, and numbers, of their own. */
static void note_record(int out, int version, int type, const void *data, size_t size, SSL *tls, void *of) {
  struct encrypt *e = of;
  (void)version;
  if (type == SSL3_RT_INNER_CONTENT_TYPE && size == 1 && SSL_is_init_finished(tls)) {
    e->count[out ? BERTHA_RECORDS_OUT : BERTHA_RECORDS_IN]++;
    e->odd |= *(const uint8_t *)data != SSL3_RT_APPLICATION_DATA;
  }
}

static int take_record(BIO *bio, char *to, int room) {
  const struct encrypt *e = BIO_get_data(bio);
  BIO_clear_retry_flags(bio);
  size_t n = e->in != NULL ? buffer_size(e->in) : 0;
  if (n == 0 || room <= 0) {
    BIO_set_retry_read(bio);
    return -1;
  }
  n = n < (size_t)room ? n : (size_t)room;
  memcpy(to, buffer_data(e->in), n);
  buffer_take(e->in, n);
  return (int)n;
}

static int put_record(BIO *bio, const char *from, int size) {
  const struct encrypt *e = BIO_get_data(bio);
  BIO_clear_retry_flags(bio);
  return size > 0 && e->out != NULL && buffer_add(e->out, from, (size_t)size) ? size : -1;
}

static long control(BIO *bio, int command, long number, void *pointer) {
  (void)bio;
  (void)number;
  (void)pointer;
  return command == BIO_CTRL_FLUSH;
}

static BIO *new_bio(struct encrypt *e) {
  static BIO_METHOD *method;
  if (method == NULL) {
    method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "bertha buffers");
    if (method == NULL || BIO_meth_set_read(method, take_record) != 1 ||
        BIO_meth_set_write(method, put_record) != 1 || BIO_meth_set_ctrl(method, control) != 1) {
      BIO_meth_free(method);
      method = NULL;
      return NULL;
    }
  }
  BIO *bio = BIO_new(method);
  if (bio != NULL) {
    BIO_set_data(bio, e);
    BIO_set_init(bio, 1);
  }
  return bio;
}

/* One context for each set of certificates and side.  Certificates are renewed: the oldest goes, and lives on in the
 * connections that it has. */
enum { SHARED_MAX = 64 };
struct shared {
  struct shared *next;
  bool server;
  char *certificate, *key, *ca;
  SSL_CTX *context;
};
static struct shared *all;

static void forget(struct shared *s) {
  free(s->certificate);
  OPENSSL_cleanse(s->key, strlen(s->key));
  free(s->key);
  free(s->ca);
  SSL_CTX_free(s->context);
  free(s);
}

static void forget_oldest(void) {
  unsigned count = 0;
  for (struct shared **at = &all; *at != NULL; at = &(*at)->next) {
    if (++count == SHARED_MAX) {
      struct shared *gone = *at;
      *at = gone->next;
      forget(gone);
      return;
    }
  }
}

static int choose_protocol(SSL *tls, const unsigned char **out, unsigned char *out_size,
                           const unsigned char *in, unsigned in_size, void *unused) {
  (void)tls;
  (void)unused;
  unsigned char *chosen;
  if (SSL_select_next_proto(&chosen, out_size, alpn, sizeof alpn - 1, in, in_size) !=
      OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  }
  *out = chosen;
  return SSL_TLSEXT_ERR_OK;
}

static bool use_certificates(SSL_CTX *context, const char *pem) {
  BIO *source = BIO_new_mem_buf(pem, -1);
  X509 *first = source != NULL ? PEM_read_bio_X509(source, NULL, NULL, NULL) : NULL;
  bool good = first != NULL && SSL_CTX_use_certificate(context, first) == 1;
  X509_free(first);
  X509 *more;
  while (good && (more = PEM_read_bio_X509(source, NULL, NULL, NULL)) != NULL) {
    good = SSL_CTX_add0_chain_cert(context, more) == 1;
  }
  BIO_free(source);
  return good;
}

static bool use_key(SSL_CTX *context, const char *pem) {
  BIO *source = BIO_new_mem_buf(pem, -1);
  EVP_PKEY *key = source != NULL ? PEM_read_bio_PrivateKey(source, NULL, NULL, NULL) : NULL;
  bool good = key != NULL && SSL_CTX_use_PrivateKey(context, key) == 1;
  EVP_PKEY_free(key);
  BIO_free(source);
  return good;
}

/* `own`: an end's certificate and its chain, of which the first is meant: whom the others have signed is a stranger. */
static bool trust(SSL_CTX *context, const char *pem, bool own) {
  BIO *source = BIO_new_mem_buf(pem, -1);
  X509_STORE *store = SSL_CTX_get_cert_store(context);
  int found = 0;
  X509 *one;
  while (source != NULL && (one = PEM_read_bio_X509(source, NULL, NULL, NULL)) != NULL) {
    found += X509_STORE_add_cert(store, one) == 1;
    X509_free(one);
    if (own) {
      break;
    }
  }
  BIO_free(source);
  X509_STORE_set_flags(store, X509_V_FLAG_PARTIAL_CHAIN); /* what is trusted need not be a root */
  return found > 0;
}

static SSL_CTX *make_context(const struct chunnel_config *config) {
  SSL_CTX *context = SSL_CTX_new(config->server ? TLS_server_method() : TLS_client_method());
  if (context == NULL) {
    return NULL;
  }
  SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
  SSL_CTX_set_num_tickets(context, 0); /* every connection proves itself */
  SSL_CTX_set_alpn_select_cb(context, choose_protocol, NULL);
  SSL_CTX_set_keylog_callback(context, note_secret);
  bool own = config->ca == NULL || config->ca[0] == '\0';
  bool good = SSL_CTX_set_alpn_protos(context, alpn, sizeof alpn - 1) == 0 &&
              use_certificates(context, config->certificate) && use_key(context, config->key) &&
              trust(context, own ? config->certificate : config->ca, own);
  if (!good) {
    SSL_CTX_free(context);
    return NULL;
  }
  return context;
}

static SSL_CTX *context_for(const struct chunnel_config *config) {
  const char *ca = config->ca != NULL ? config->ca : "";
  for (struct shared *s = all; s != NULL; s = s->next) {
    if (s->server == config->server && strcmp(s->certificate, config->certificate) == 0 &&
        strcmp(s->key, config->key) == 0 && strcmp(s->ca, ca) == 0) {
      return s->context;
    }
  }
  struct shared *s = calloc(1, sizeof *s);
  SSL_CTX *context = s != NULL ? make_context(config) : NULL;
  if (context == NULL) {
    free(s);
    return NULL;
  }
  *s = (struct shared){all,        config->server, strdup(config->certificate), strdup(config->key),
                       strdup(ca), context};
  if (s->certificate == NULL || s->key == NULL || s->ca == NULL) {
    abort();
  }
  all = s;
  forget_oldest();
  return context;
}

static void encrypt_close(struct chunnel *c) {
  struct encrypt *e = (struct encrypt *)c;
  SSL_free(e->tls); /* and its BIO */
  records_close(e->keys);
  OPENSSL_cleanse(&e->records, sizeof e->records);
  free(e);
}

static struct chunnel *encrypt_open(const struct chunnel_config *config, const char **why) {
  if (config->certificate == NULL || config->key == NULL) {
    *why = "encrypt: there is no certificate and no cluster key; run 'bertha key new'";
    return NULL;
  }
  SSL_CTX *context = context_for(config);
  struct encrypt *e = calloc(1, sizeof *e);
  *why = "encrypt: the certificate or its key cannot be used";
  if (context == NULL || e == NULL) {
    free(e);
    return NULL;
  }
  e->base.ops = &chunnel_encrypt;
  e->tls = SSL_new(context);
  BIO *bio = e->tls != NULL ? new_bio(e) : NULL;
  if (bio == NULL) {
    encrypt_close(&e->base);
    return NULL;
  }
  SSL_set_bio(e->tls, bio, bio);
  SSL_set_app_data(e->tls, e);
  SSL_set_msg_callback(e->tls, note_record);
  SSL_set_msg_callback_arg(e->tls, e);
  if (config->server) {
    SSL_set_accept_state(e->tls);
  } else {
    SSL_set_connect_state(e->tls);
  }
  return &e->base;
}

static bool failed(struct encrypt *e, const char *what) {
  unsigned long code = ERR_peek_last_error();
  const char *text = code != 0 ? ERR_reason_error_string(code) : NULL;
  snprintf(e->base.why, sizeof e->base.why, "encrypt: %s", text != NULL ? text : what);
  ERR_clear_error();
  return false;
}

/* SSL_get_error wants the thread's queue empty before the call.  It nearly always is, and clearing it is not cheap. */
static void no_errors(void) {
  if (ERR_peek_error() != 0) {
    ERR_clear_error();
  }
}

/* False: it failed.  Under way or done: true. */
static bool shake(struct encrypt *e) {
  if (SSL_is_init_finished(e->tls)) {
    return true;
  }
  no_errors();
  int result = SSL_do_handshake(e->tls);
  if (result == 1) {
    const unsigned char *name;
    unsigned size;
    SSL_get0_alpn_selected(e->tls, &name, &size);
    if (size != sizeof alpn - 2 || memcmp(name, alpn + 1, size) != 0) {
      return failed(e, "the other end does not speak bertha/1");
    }
    return true;
  }
  int error = SSL_get_error(e->tls, result);
  return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE || failed(e, "the handshake failed");
}

static bool why_not(struct encrypt *e, const char *why) {
  snprintf(e->base.why, sizeof e->base.why, "%s", why);
  return false;
}

/* The same by our own records. */
static bool records_down(struct encrypt *e, struct buffer *in, struct buffer *out, bool end) {
  while (buffer_size(in) > 0 && buffer_size(out) < CHUNNEL_ENOUGH) {
    size_t size = buffer_size(in) < RECORD_BYTES_MAX ? buffer_size(in) : RECORD_BYTES_MAX;
    uint8_t *to = buffer_reserve(out, size + RECORD_MORE + RECORD_REPLY_MAX);
    size_t n = to != NULL ? record_seal(e->keys, &e->records, buffer_data(in), size, NULL, 0, to) : 0;
    if (n == 0) {
      return why_not(e, "encrypt: cannot write");
    }
    buffer_added(out, n);
    buffer_take(in, size);
  }
  if (end && !e->base.down_done && buffer_size(in) == 0) {
    uint8_t *to = buffer_reserve(out, RECORD_REPLY_MAX);
    size_t n = to != NULL ? record_close_notify(e->keys, &e->records, to) : 0;
    if (n == 0) {
      return why_not(e, "encrypt: cannot write");
    }
    buffer_added(out, n);
    e->base.down_done = true;
  }
  return true;
}

static bool records_up(struct encrypt *e, struct buffer *in, struct buffer *out, struct buffer *back,
                       bool end) {
  while (!e->notified && buffer_size(out) < CHUNNEL_ENOUGH) {
    size_t size = record_size(buffer_data(in), buffer_size(in)), n, reply;
    if (size == 0 || (size != SIZE_MAX && size > buffer_size(in))) {
      break;
    }
    uint8_t *to = size != SIZE_MAX ? buffer_reserve(out, size) : NULL;
    uint8_t *answer = to != NULL ? buffer_reserve(back, RECORD_REPLY_MAX) : NULL;
    if (answer == NULL) {
      return why_not(e, size == SIZE_MAX ? "encrypt: this is no record of TLS" : "encrypt: no memory");
    }
    const char *why;
    enum record_what what =
        record_open(e->keys, &e->records, buffer_data(in), size, to, &n, answer, &reply, &why);
    if (what == RECORD_BAD) {
      return why_not(e, why);
    }
    buffer_take(in, size);
    buffer_added(out, n);
    buffer_added(back, reply);
    e->notified = what == RECORD_END;
  }
  bool waits = !e->notified && buffer_size(out) >= CHUNNEL_ENOUGH;
  if (end && !e->notified && !waits) {
    return why_not(e, "encrypt: the connection was cut off");
  }
  e->base.up_done = e->notified;
  return true;
}

bool encrypt_lend(struct chunnel *c, struct bertha_records *to) {
  struct encrypt *e = (struct encrypt *)c;
  if (e->keys == NULL) {
    if (!SSL_is_init_finished(e->tls) || e->odd || e->secrets != 2 || SSL_has_pending(e->tls)) {
      return false;
    }
    e->records.suite = SSL_CIPHER_get_protocol_id(SSL_get_current_cipher(e->tls));
    memcpy(e->records.sequence, e->count, sizeof e->count);
    e->keys = records_open(&e->records);
    if (e->keys == NULL) {
      e->odd = true;
      return false;
    }
    SSL_free(e->tls);
    e->tls = NULL;
  }
  *to = e->records;
  return !e->notified && !c->down_done;
}

bool encrypt_back(struct chunnel *c, const struct bertha_records *from, bool notified) {
  struct encrypt *e = (struct encrypt *)c;
  uint32_t suite = e->records.suite;
  e->records = *from;
  e->records.suite = suite; /* the rest is the program's own loss */
  records_close(e->keys);
  e->keys = records_open(&e->records);
  e->notified |= notified;
  return e->keys != NULL;
}

static bool encrypt_down(struct chunnel *c, struct buffer *in, struct buffer *out, bool end) {
  struct encrypt *e = (struct encrypt *)c;
  if (e->keys != NULL) {
    return records_down(e, in, out, end);
  }
  e->in = NULL;
  e->out = out;
  if (!shake(e)) {
    return false;
  }
  bool ready = SSL_is_init_finished(e->tls);
  while (ready && buffer_size(in) > 0 && buffer_size(out) < CHUNNEL_ENOUGH) {
    int size = buffer_size(in) < PIECE ? (int)buffer_size(in) : PIECE;
    no_errors();
    int n = SSL_write(e->tls, buffer_data(in), size);
    if (n <= 0) {
      return failed(e, "cannot write");
    }
    buffer_take(in, (size_t)n);
  }
  if (ready && end && !c->down_done && buffer_size(in) == 0) {
    SSL_shutdown(e->tls); /* close_notify; the other end's comes when it comes */
    no_errors();
    c->down_done = true;
  }
  return true;
}

static bool encrypt_up(struct chunnel *c, struct buffer *in, struct buffer *out, struct buffer *back,
                       bool end) {
  struct encrypt *e = (struct encrypt *)c;
  if (e->keys != NULL) {
    return records_up(e, in, out, back, end);
  }
  e->in = in;
  e->out = back;
  if (!shake(e)) {
    return false;
  }
  bool ready = SSL_is_init_finished(e->tls);
  while (ready && !e->notified && buffer_size(out) < CHUNNEL_ENOUGH &&
         (buffer_size(in) > 0 || SSL_has_pending(e->tls))) {
    uint8_t *to = buffer_reserve(out, PIECE);
    if (to == NULL) {
      return failed(e, "no memory");
    }
    no_errors();
    int n = SSL_read(e->tls, to, PIECE);
    if (n > 0) {
      buffer_added(out, (size_t)n);
      continue;
    }
    int error = SSL_get_error(e->tls, n);
    if (error == SSL_ERROR_ZERO_RETURN) {
      e->notified = true;
    } else if (error != SSL_ERROR_WANT_READ) {
      return failed(e, "cannot read");
    } else if (buffer_size(in) == 0) { /* a part of a record: TLS keeps it */
      break;
    }
  }
  if (end && buffer_size(in) == 0 && !e->notified && buffer_size(out) < CHUNNEL_ENOUGH) {
    snprintf(c->why, sizeof c->why, "encrypt: %s",
             ready ? "the connection was cut off" : "the connection ended in the TLS handshake");
    return false;
  }
  c->up_done = e->notified;
  return true;
}

/* Its buffers are 32 KiB.  SSL_MODE_RELEASE_BUFFERS would let them go after each record, at a quarter of what a small
 * one costs. */
static void encrypt_idle(struct chunnel *c) {
  const struct encrypt *e = (struct encrypt *)c;
  if (e->tls != NULL) {
    SSL_free_buffers(e->tls); /* not those that hold a part of a record */
  }
}

const struct chunnel_ops chunnel_encrypt = {"encrypt",  encrypt_open,  encrypt_down,
                                            encrypt_up, encrypt_close, encrypt_idle};
