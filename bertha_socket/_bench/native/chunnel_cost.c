/* What a chunnel's C implementation costs beside the library that it calls:
 *                              chunnel_cost zstd|lz4|frame|encrypt|records|reliable SIZE MILLISECONDS [CERTIFICATE KEY]
 *
 * Messages of SIZE bytes of text go down through one end and up through another, in memory: by the functions that
 * the carrier calls (native/chunnels/), and by the library alone in a loop, a group of messages of each in turn.
 * The library's way has buffers of its own that are large enough, reuses its contexts, and has no head before a
 * message.  For frame and reliable, which have no library, it is memcpy: that bounds neither, for frame has a length to
 * write and to read, and reliable's datagrams (of which none is lost here) to be cut, numbered, kept and acknowledged.
 *
 * Prints one JSON object: {"chunnel": {"down": NS, "up": NS}, "library": {...}}, a message, medians of the groups.
 */
#include "common.h"

#include <lz4frame.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <zstd.h>

#include "chunnels/chunnel.h"
#include "chunnels/encrypt.h"
#include "chunnels/reliable.h"

enum { LEVEL = 3, GROUP_BYTES = 128 * 1024, GROUP_MOST = 256, SAMPLES = 65536, TLS_PIECE = 16 * 1024 };

/* RECORDS: as ENCRYPT, once a program could have gone on by itself (native/core/records.c). */
enum kind { ZSTD, LZ4, FRAME, ENCRYPT, RECORDS, RELIABLE, KINDS };
static const char *const names[KINDS] = {"zstd", "lz4", "frame", "encrypt", "records", "reliable"};
static const char *const wires[KINDS] = {"zstd/1", "lz4/1", "u32be/1", "tls/1.3", "tls/1.3", "brel/1"};

static enum kind kind;
static size_t size, count;
static uint8_t *plain; /* `size` bytes */
static char *certificate, *key;

__attribute__((noreturn)) static void broken(const char *what) {
  fprintf(stderr, "chunnel_cost: %s %zu: %s\n", names[kind], size, what);
  exit(1);
}

static void must(bool good, const char *what) {
  if (!good) {
    broken(what);
  }
}

static char *text_of(const char *path) {
  static char room[2][16384];
  static int used;
  FILE *file = fopen(path, "r");
  if (file == NULL) {
    fail(path);
  }
  char *to = room[used++ % 2];
  to[fread(to, 1, sizeof room[0] - 1, file)] = '\0';
  fclose(file);
  return to;
}

static void write_text(void) {
  static const char *const words[] = {"the ",   "connection ", "of ",   "a ",      "message ", "server ",
                                      "and ",   "bytes ",      "ring ", "client ", "user ",    "name ",
                                      "value ", "404 ",        "{\"",   "\"},\n"};
  uint32_t state = 12345;
  for (size_t at = 0; at < size;) {
    state = state * 1664525u + 1013904223u;
    const char *word = words[state >> 28];
    for (; *word != '\0' && at < size; word++) {
      plain[at++] = (uint8_t)*word;
    }
    if ((state & 0x700) == 0 && at < size) {
      plain[at++] = (uint8_t)(state >> 16);
    }
  }
}

/* ---- by the chunnel ---- */

static struct chunnel *client, *server;
static struct buffer in, wire, out, back;

static void refill(struct buffer *b, size_t n) { /* what was taken of it is still there */
  b->start = 0;
  b->end = n;
}

static struct chunnel *opened(bool serving) {
  static const struct chunnel_ops *const all[KINDS] = {&chunnel_compress, &chunnel_compress, &chunnel_frame,
                                                       &chunnel_encrypt, &chunnel_encrypt};
  static const struct pack_value none = {.kind = PACK_MAP};
  struct chunnel_config config = {serving, wires[kind], &none, certificate, key, certificate};
  const char *why;
  struct chunnel *c = all[kind]->open(&config, &why);
  if (c == NULL) {
    broken(why);
  }
  return c;
}

static bool is_tls(void) {
  return kind == ENCRYPT || kind == RECORDS;
}

static void lend_and_take_back(struct chunnel *c) {
  struct bertha_records records;
  must(encrypt_lend(c, &records) && encrypt_back(c, &records, false), "encrypt cannot be lent");
}

static void chunnel_begin(void) {
  client = opened(false);
  server = opened(true);
  must(buffer_add(&in, plain, size), "no memory");
  refill(&in, 0);
  for (int i = 0; i < 4; i++) { /* the handshake */
    must(client->ops->down(client, &in, &wire, false), client->why);
    must(server->ops->up(server, &wire, &out, &back, false), server->why);
    must(client->ops->up(client, &back, &out, &wire, false), client->why);
  }
  if (kind == RECORDS) {
    lend_and_take_back(client);
    lend_and_take_back(server);
  }
}

static void chunnel_down(void) {
  refill(&wire, 0);
  for (size_t i = 0; i < count; i++) {
    refill(&in, size);
    must(client->ops->down(client, &in, &wire, false), client->why);
  }
}

static void chunnel_up(void) {
  refill(&out, 0);
  must(server->ops->up(server, &wire, &out, &back, false), server->why);
}

static const uint8_t *chunnel_got(void) {
  return buffer_size(&out) == count * size ? buffer_data(&out) : NULL;
}

/* ---- by reliable, which is of datagrams ---- */

enum { MTU = 1200, UNDER_WAY = 2 * RELIABLE_WINDOW, PATIENCE = 1000 };

struct flight { /* datagrams on their way, one behind the other */
  uint8_t bytes[UNDER_WAY * MTU];
  size_t sizes[UNDER_WAY];
  size_t count, end;
};

static struct reliable *sender, *receiver;
static struct flight there, answers;
static double seconds; /* nothing is lost, so its own time need not go on as ours does */

static void depart(struct reliable *from, struct flight *f) {
  size_t n;
  while ((n = reliable_datagram(from, f->bytes + f->end, sizeof f->bytes - f->end)) > 0) {
    must(f->count < UNDER_WAY, "more is under way than the window has room for");
    f->sizes[f->count++] = n;
    f->end += n;
  }
}

static void arrive(struct reliable *to, struct flight *f, struct flight *answer) {
  const uint8_t *at = f->bytes, *message;
  size_t n;
  for (size_t i = 0; i < f->count; at += f->sizes[i++]) {
    must(reliable_came(to, at, f->sizes[i], seconds), reliable_why(to));
    while (reliable_message(to, &message, &n)) {
      must(buffer_add(&out, message, n), "no memory");
    }
    depart(to, answer);
  }
  f->count = f->end = 0;
}

static void reliable_begin(void) {
  struct reliable_config config = {.mtu = MTU, .connection = 1, .give_up = 30, .first = 1};
  sender = reliable_open(&config);
  config.server = true;
  receiver = reliable_open(&config);
  must(sender != NULL && receiver != NULL, "no memory");
  must(reliable_start(sender, seconds) && reliable_start(receiver, seconds), "no start");
  depart(sender, &there);
  arrive(receiver, &there, &answers);
}

static void reliable_down(void) { /* and what has been acknowledged meanwhile */
  seconds += 0.0001;
  arrive(sender, &answers, &there);
  for (size_t i = 0; i < count; i++) {
    must(reliable_send(sender, plain, size, seconds), reliable_why(sender));
    depart(sender, &there);
  }
}

static void reliable_up(void) {
  refill(&out, 0);
  arrive(receiver, &there, &answers);
  /* As long as the window has not grown (the groups that are not counted), a part waits for acknowledgements. */
  for (int i = 0; i < PATIENCE && buffer_size(&out) < count * size; i++) {
    seconds += 0.02; /* after which the last one is due */
    must(reliable_tick(receiver, seconds), reliable_why(receiver));
    depart(receiver, &answers);
    arrive(sender, &answers, &there);
    arrive(receiver, &there, &answers);
  }
}

/* ---- by the library ---- */

static ZSTD_CCtx *packer;
static ZSTD_DCtx *unpacker;
static LZ4F_dctx *lz4_unpacker;
static SSL *near_end, *far_end;
static uint8_t *packed, *unpacked;
static size_t packed_room, *packed_sizes;

static SSL *tls(bool serving, BIO *from, BIO *to) {
  SSL_CTX *context = SSL_CTX_new(serving ? TLS_server_method() : TLS_client_method());
  must(context != NULL && SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) == 1, "no context");
  SSL_CTX_set_num_tickets(context, 0);
  BIO *pem = BIO_new_mem_buf(certificate, -1);
  X509 *own = PEM_read_bio_X509(pem, NULL, NULL, NULL);
  BIO_free(pem);
  pem = BIO_new_mem_buf(key, -1);
  EVP_PKEY *secret = PEM_read_bio_PrivateKey(pem, NULL, NULL, NULL);
  BIO_free(pem);
  must(SSL_CTX_use_certificate(context, own) == 1 && SSL_CTX_use_PrivateKey(context, secret) == 1,
       "the certificate cannot be used");
  SSL *made = SSL_new(context);
  BIO_up_ref(from);
  BIO_up_ref(to);
  SSL_set_bio(made, from, to);
  if (serving) {
    SSL_set_accept_state(made);
  } else {
    SSL_set_connect_state(made);
  }
  return made;
}

static void library_begin(void) {
  packed_room = ZSTD_compressBound(size) + LZ4F_compressFrameBound(size, NULL);
  packed = malloc(packed_room * count);
  packed_sizes = calloc(count, sizeof *packed_sizes);
  unpacked = malloc(size * count);
  packer = ZSTD_createCCtx();
  unpacker = ZSTD_createDCtx();
  must(packed != NULL && packed_sizes != NULL && unpacked != NULL && packer != NULL && unpacker != NULL &&
           !LZ4F_isError(LZ4F_createDecompressionContext(&lz4_unpacker, LZ4F_VERSION)),
       "no memory");
  if (!is_tls()) {
    return;
  }
  BIO *up = BIO_new(BIO_s_mem()), *down = BIO_new(BIO_s_mem());
  near_end = tls(false, up, down);
  far_end = tls(true, down, up);
  for (int i = 0; i < 4; i++) {
    SSL_do_handshake(near_end);
    SSL_do_handshake(far_end);
  }
  must(SSL_is_init_finished(near_end) && SSL_is_init_finished(far_end), "no handshake");
}

static void library_down(void) {
  for (size_t i = 0; i < count; i++) {
    uint8_t *to = packed + i * packed_room;
    size_t n = size;
    if (kind == ZSTD) {
      n = ZSTD_compressCCtx(packer, to, packed_room, plain, size, LEVEL);
      must(!ZSTD_isError(n), "ZSTD_compressCCtx");
    } else if (kind == LZ4) {
      LZ4F_preferences_t how = {.frameInfo.contentSize = size};
      n = LZ4F_compressFrame(to, packed_room, plain, size, &how);
      must(!LZ4F_isError(n), "LZ4F_compressFrame");
    } else if (is_tls()) {
      must(SSL_write(near_end, plain, (int)size) == (int)size, "SSL_write");
    } else {
      memcpy(to, plain, size);
    }
    packed_sizes[i] = n;
  }
}

static void library_up(void) {
  uint8_t *to = unpacked, *end = unpacked + count * size;
  if (is_tls()) {
    while (to < end) {
      int n = SSL_read(far_end, to, end - to < TLS_PIECE ? (int)(end - to) : TLS_PIECE);
      must(n > 0, "SSL_read");
      to += n;
    }
    return;
  }
  for (size_t i = 0; i < count; i++, to += size) {
    const uint8_t *from = packed + i * packed_room;
    if (kind == ZSTD) {
      must(ZSTD_decompressDCtx(unpacker, to, size, from, packed_sizes[i]) == size, "ZSTD_decompressDCtx");
    } else if (kind == LZ4) {
      size_t got = size, taken = packed_sizes[i];
      must(LZ4F_decompress(lz4_unpacker, to, &got, from, &taken, NULL) == 0 && got == size,
           "LZ4F_decompress");
    } else {
      memcpy(to, from, size);
    }
  }
}

static const uint8_t *library_got(void) {
  return unpacked;
}

/* ---- both ---- */

static const struct way {
  const char *name;
  void (*begin)(void);
  void (*down)(void);
  void (*up)(void);
  const uint8_t *(*got)(void);
} by_chunnel = {"chunnel", chunnel_begin, chunnel_down, chunnel_up, chunnel_got},
  by_reliable = {"chunnel", reliable_begin, reliable_down, reliable_up, chunnel_got},
  by_library = {"library", library_begin, library_down, library_up, library_got};

static uint64_t spent[2][2][SAMPLES];

static int by_size(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

static double median(uint64_t *of, size_t n) {
  qsort(of, n, sizeof *of, by_size);
  return (double)of[n / 2] / (double)count;
}

int main(int argc, char **argv) {
  if (argc != 4 && argc != 6) {
    fprintf(
        stderr,
        "usage: chunnel_cost zstd|lz4|frame|encrypt|records|reliable SIZE MILLISECONDS [CERTIFICATE KEY]\n");
    return 2;
  }
  for (kind = 0; kind < KINDS && strcmp(names[kind], argv[1]) != 0; kind++) {
  }
  size = (size_t)strtoull(argv[2], NULL, 10);
  uint64_t until = now_ns() + (uint64_t)strtoull(argv[3], NULL, 10) * 1000000u;
  if (kind == KINDS || size == 0 || size > GROUP_BYTES || (is_tls() && argc != 6)) {
    fprintf(stderr, "chunnel_cost: no such case\n");
    return 2;
  }
  if (argc == 6) {
    certificate = text_of(argv[4]);
    key = text_of(argv[5]);
  }
  count = GROUP_BYTES / size < GROUP_MOST ? GROUP_BYTES / size : GROUP_MOST;
  plain = malloc(size);
  must(plain != NULL, "no memory");
  write_text();
  const struct way *ways[2] = {kind == RELIABLE ? &by_reliable : &by_chunnel, &by_library};
  for (int w = 0; w < 2; w++) {
    ways[w]->begin();
  }
  size_t groups = 0;
  for (size_t warm = 3; groups < SAMPLES && (groups < 3 || now_ns() < until); groups += warm == 0) {
    for (int w = 0; w < 2; w++) {
      uint64_t begin = now_ns();
      ways[w]->down();
      uint64_t half = now_ns();
      ways[w]->up();
      spent[w][0][groups] = half - begin;
      spent[w][1][groups] = now_ns() - half;
      const uint8_t *got = ways[w]->got();
      for (size_t i = 0; i < count; i++) {
        must(got != NULL && memcmp(got + i * size, plain, size) == 0, "what came up is not what went down");
      }
    }
    warm -= warm > 0;
  }
  printf("{");
  for (int w = 0; w < 2; w++) {
    printf("%s\"%s\": {\"down\": %.2f, \"up\": %.2f}", w > 0 ? ", " : "", ways[w]->name,
           median(spent[w][0], groups), median(spent[w][1], groups));
  }
  printf("}\n");
  return 0;
}
