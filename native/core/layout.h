/* Shared memory layouts: everything that one process reads in memory that another one writes.
 *
 * Four objects:
 *   directory  a file beside the agent's socket ("<socket>.dir"); written by the agent alone, mapped
 *              read-only by every shim: which address, port and network namespace has a listener that
 *              can negotiate.
 *   claims     a sealed memfd per listener, written by the listener's processes and by its clients:
 *              a hash table of hints "the connection with this 4-tuple is slot S of link L".  A hint is
 *              never trusted: the slot itself holds the whole tuple.
 *   link       a sealed memfd between one client process and one listener: slots (a connection each)
 *              and their rings.
 *   table      a memfd per process family (a process and its forked children): the connections it has,
 *              readable by the agent for `bertha ps`.
 *
 * Included by C and, through the cffi extension, used by the agent.  All integers are in the machine's
 * own order: the memory never leaves the host.
 */
#ifndef BERTHA_LAYOUT_H
#define BERTHA_LAYOUT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define BERTHA_LAYOUT_VERSION 8u
#define BERTHA_MAGIC_DIR 0x42444952u   /* "BDIR" */
#define BERTHA_MAGIC_CLAIM 0x42434c4du /* "BCLM" */
#define BERTHA_MAGIC_LINK 0x424c4e4bu  /* "BLNK" */
#define BERTHA_MAGIC_TABLE 0x4254424cu /* "BTBL" */

#define BERTHA_CACHELINE 64

/* An address is always 16 bytes; IPv4 is written v4-mapped (RFC 4291, 2.5.5.2).  Ports are in host order. */
struct bertha_tuple {
  uint8_t client_addr[16];
  uint8_t server_addr[16];
  uint16_t client_port;
  uint16_t server_port;
  uint32_t reserved;
};

/* ---- directory ---------------------------------------------------------------------------------- */

struct bertha_dir_header {
  uint32_t magic;
  uint32_t version;
  _Atomic uint64_t generation; /* changes with every agent that takes over; 0: no agent is serving */
  uint32_t agent_pid;
  uint32_t entry_count;  /* a power of two */
  _Atomic uint32_t news; /* counts: somebody may be there now of whom the agent has said that he is not */
  uint8_t pad[BERTHA_CACHELINE - 28];
};

/* Found by bertha_dir_hash(addr, port) and linear probing; a probe ends at an entry with port 0.  A
 * removed entry keeps its port and has listener 0.  `seq` is odd while the agent writes. */
struct bertha_dir_entry {
  _Atomic uint32_t seq;
  uint16_t port;
  uint16_t flags; /* BERTHA_DIR_* */
  uint8_t addr[16];
  uint64_t netns;    /* SO_NETNS_COOKIE of the listening socket */
  uint64_t listener; /* 0: removed */
  uint32_t uid;
  uint32_t pid;
  /* Apart from `seq`.  Which processes have made one short connection there and ended, lately, one after the other:
   * bertha_brief_word(), 0: none. */
  _Atomic uint64_t brief;
  uint8_t pad[8];
};
#define BERTHA_DIR_DATAGRAMS 4u /* a bound UDP socket; who looks for TCP does not see it */
#define BERTHA_DIR_DAG 2u       /* its connections may have chunnels: to be negotiated */
#define BERTHA_DIR_LOOPBACK 1u  /* a loopback address: only meant for its own namespace */

#define BERTHA_DIR_ENTRIES 8192u
#define BERTHA_BRIEF_MOST 2000u /* units of 2^20 ns: what is said for longer than that is not believed */

/* ---- claims ------------------------------------------------------------------------------------- */

struct bertha_claims_header {
  uint32_t magic;
  uint32_t version;
  uint64_t listener;
  uint32_t bucket_count; /* a power of two */
  _Atomic uint32_t
      dag; /* enum bertha_dag_need, written by the agent: what its connections may be negotiated to have */
  _Atomic uint32_t dag_carrier; /* BERTHA_CARRIER_*: which carrier serves them */
  _Atomic uint32_t
      dag_spin_us; /* bound by policy on spinning for their rings to it; UINT32_MAX: none given */
  uint8_t pad[BERTHA_CACHELINE - 32];
};

/* Set when a listener registers, and again before the first client gets a plan with chunnels. */
enum bertha_dag_need {
  BERTHA_DAG_NONE = 0,
  BERTHA_DAG_REQUIRED = 1, /* every connection, or it is refused */
  BERTHA_DAG_MAYBE = 2,    /* some clients come with chunnels, others plain */
};

/* A word is tag:24 | link:24 | slot:16, 0 when empty; the tag is never 0. */
#define BERTHA_CLAIM_WAYS 8
struct bertha_claims_bucket {
  _Atomic uint64_t word[BERTHA_CLAIM_WAYS];
};
#define BERTHA_CLAIM_BUCKETS 4096u

/* ---- link --------------------------------------------------------------------------------------- */

#define BERTHA_LINK_SLOTS 1024u
#define BERTHA_RING_MAX (1u << 20) /* bytes of address space each direction of a slot has */
#define BERTHA_SLEEPERS 256u       /* a side; index 0 is never used */
#define BERTHA_SIDE_CLIENT 0
#define BERTHA_SIDE_SERVER 1

/* A thread or an epoll set of one side that may be asleep.  `armed` is set by the sleeper before it looks at the
 * rings a last time, to a number that differs from sleep to sleep; whoever finds it set rings `bell` and only then
 * takes it back to 0, if it is still the same number: a ringer that is killed in between takes no wake-up with it. */
struct bertha_sleeper {
  _Atomic uint32_t armed; /* 0: awake */
  _Atomic uint32_t bell;  /* the agent's number of an eventfd; 0: ring on the kernel's connection */
  _Atomic uint32_t owner; /* pid that has taken this entry, 0: free */
  uint8_t pad[BERTHA_CACHELINE - 12];
};

/* One direction of a connection: a single-producer single-consumer ring of bytes.
 *
 * Positions count the bytes that went through the ring since the connection began.  Byte p lies at
 * offset (p - base) % size; the producer changes `base` and `size` only while the ring is empty and
 * before it publishes a new tail, so a small request always uses the same few cache lines and an idle
 * connection keeps a page or two.
 *
 * The bytes before the ring: `switch_at` is the number of bytes the producer gave to the kernel before
 * its first ring byte (UINT64_MAX: it has not switched).  The bytes after it: `ring_end` is the position
 * at which the producer went back to the kernel for good (UINT64_MAX: it has not). */
struct bertha_direction {
  /* written by the producer */
  _Atomic uint64_t tail;
  _Atomic uint64_t base;
  _Atomic uint32_t size;
  _Atomic uint32_t
      closed; /* the producer has ended: 1 in order, 2 by a reset; the kernel's FIN or RST decides when */
  _Atomic uint64_t switch_at;
  _Atomic uint64_t ring_end;
  _Atomic uint32_t space_wanted; /* the producer waits for free space */
  uint8_t pad0[BERTHA_CACHELINE - 44];
  /* written by the consumer */
  _Atomic uint64_t head;
  uint8_t pad1[BERTHA_CACHELINE - 8];
  /* Apart from `head`, which changes with each message: the producer looks here with each. */
  _Atomic uint32_t want_kernel; /* BERTHA_WANT_*: the consumer asks the producer to go back to the kernel */
  /* The bell of last resort: bytes on the kernel's connection, which make the consumer's descriptor
   * readable for everybody (poll, any epoll, io_uring, a process without a shim). */
  _Atomic uint32_t bell_out; /* 1: a bell byte lies in the kernel's queue */
  _Atomic uint32_t bells;    /* how many were ever sent; the consumer skips them after ring_end */
  uint8_t pad2[BERTHA_CACHELINE - 12];
};

enum bertha_want {
  BERTHA_WANT_RING = 0,
  BERTHA_WANT_KERNEL = 1,   /* from the producer's next byte on */
  BERTHA_WANT_ALL_BACK = 2, /* also what is unread: the consumer has stopped at `head` */
  BERTHA_WANT_GIVING = 3,   /* the producer's answer to that, while it sends it */
};

/* Who of one side waits for this slot: indices into this side's sleepers, 0: nobody.  The connection may be in several epoll
 * sets: those beyond the first are in `also`.  Of those that say BERTHA_WATCH_ONE, one is rung. */
#define BERTHA_WATCH_ALSO 23u
#define BERTHA_WATCH_ONE 0x8000u /* EPOLLEXCLUSIVE */
struct bertha_watch {
  _Atomic uint16_t epoll;
  _Atomic uint16_t rx;
  _Atomic uint16_t tx;
  _Atomic uint16_t kernel; /* 1: somebody watches the kernel's descriptor; ring on the connection */
  _Atomic uint32_t done;   /* this side will not touch the slot any more */
  _Atomic uint32_t cpu;    /* processor this side last ran on, plus one */
  _Atomic uint16_t more;   /* how many places of `also` have been used; 0: it is in one set, or in none */
  _Atomic uint16_t also[BERTHA_WATCH_ALSO];
};

enum bertha_slot_state {
  BERTHA_SLOT_FREE = 0,
  BERTHA_SLOT_CLAIMED = 1,  /* the client has made the kernel's connection and waits for the server */
  BERTHA_SLOT_ATTACHED = 2, /* the server has tied its half to it */
  BERTHA_SLOT_REFUSED = 3,  /* the server will not: plain for good */
};

/* `state` is use << 2 | enum bertha_slot_state: the number of the claim is part of the word, so that a server
 * ties itself to the very claim that it has compared, not to a later one in the same slot. */
#define BERTHA_SLOT_WORD(use, state) ((uint32_t)(use) << 2 | (uint32_t)(state))
#define BERTHA_SLOT_STATE(word) ((word)&3u)
#define BERTHA_SLOT_USE(word) ((word) >> 2)
#define BERTHA_PROMISE_TAKEN (UINT64_C(1) << 63)
struct bertha_slot {
  _Atomic uint32_t state;
  uint32_t reserved;
  uint64_t netns; /* the client's */
  struct bertha_tuple tuple;
  uint32_t nonce; /* what the client put into its SYN (cross-namespace), 0: nothing */
  uint32_t client_pid;
  uint32_t server_pid;
  uint32_t reserved2;
  /* `unix`: the number of a socketpair that the server had made ahead, whose other end the client has fetched; and
   * which one the server has taken for this connection.  0: none. */
  _Atomic uint64_t end_held;
  _Atomic uint64_t end_taken;
  /* `unix`, a client with such an end that is asleep until there is an answer: after how many bytes, plus one, it sends by the
   * unix socket.  Valid once the server has set BERTHA_PROMISE_TAKEN; until then the client may take it back. */
  _Atomic uint64_t promise;
  /* To a native carrier: who has its turn, and whether the program would take it (struct bertha_loan). */
  _Atomic uint32_t loan_turn;   /* enum bertha_turn */
  _Atomic uint32_t loan_wanted; /* enum bertha_loan_wanted */
  uint8_t pad0[2 * BERTHA_CACHELINE - 16 - 40 - 16 - 24 - 8];
  struct bertha_watch watch[2];
  struct bertha_direction dir[2]; /* [side that produces] */
};

/* For the connection log: which chunnels the client's connections to this listener go without, and why. */
#define BERTHA_LEFT_OUT_SIZE 400u

struct bertha_link_header {
  uint32_t magic;
  uint32_t version;
  uint64_t listener;
  uint32_t index; /* of this link at its listener, from 1 */
  uint32_t slot_count;
  uint32_t ring_max;
  uint32_t client_pid;
  uint64_t dirty_offset[2]; /* bitmaps: slots in which something changed for that side */
  uint64_t sleeper_offset[2];
  uint64_t slot_offset;
  uint64_t ring_offset; /* ring of slot s, side d: ring_offset + (2 * s + d) * ring_max */
  uint64_t total_size;
  _Atomic uint32_t dead;    /* set by the agent: the client process is gone */
  uint32_t left_out_offset; /* a text that ends with NUL, written by the agent; 0: there is none */
  uint64_t loan_offset;     /* between a program and a native carrier: a bertha_loan for each slot; 0: none */
  uint8_t pad[BERTHA_CACHELINE * 2 - 104];
};

/* ---- loan --------------------------------------------------------------------------------------- */

/* What TLS 1.3's record layer needs to go on where the handshake has ended (RFC 8446, 5 and 7.2). */
#define BERTHA_RECORDS_OUT 0
#define BERTHA_RECORDS_IN 1
struct bertha_records {
  uint32_t suite;        /* IANA's number */
  uint8_t secret[2][48]; /* [BERTHA_RECORDS_*]: application_traffic_secret_N */
  uint64_t sequence[2];
};

/* While all that runs is `encrypt`, the program may do itself what its carrier does for the connection: take from the ring,
 * seal and send, receive, open and put into the ring.  Who has the turn has the TCP socket, this, and the carrier's side of the
 * slot; the other one touches none of it.  The carrier offers it, the program takes it, and gives it back as soon as anything
 * is to be done that it does not do itself (core/borrow.c, carrier/lend.c). */
enum bertha_turn {
  BERTHA_TURN_CARRIER = 0,
  BERTHA_TURN_OFFERED = 1, /* the carrier's, but the program may take it */
  BERTHA_TURN_PROGRAM = 2,
};
#define BERTHA_LOAN_IN (32u << 10)
#define BERTHA_LOAN_OUT (17u << 10)
#define BERTHA_LOAN_STRIDE (52u << 10) /* bytes from one slot's to the next's */
enum bertha_loan_wanted {
  BERTHA_LOAN_NEVER = 0, /* the memory below is not touched: a connection does without a page of it */
  BERTHA_LOAN_WANTED = 1,
  BERTHA_LOAN_NOT_NOW = 2,
};
struct bertha_loan {
  _Atomic uint32_t lock; /* within the program: tid of the holder */
  uint32_t owner;        /* pid that has taken it */
  struct bertha_records records;
  _Atomic uint64_t bytes; /* that ever were sealed and opened in the program, for the connection log */
  uint32_t ended;         /* close_notify has come */
  uint32_t failed;        /* what came was not TLS's */
  int32_t error;          /* errno of the socket; 0: none */
  uint32_t in_size;       /* received, and not a whole record yet */
  uint32_t out_at;        /* sealed, and not taken by the kernel: from here on */
  uint32_t out_size;
  uint8_t in[BERTHA_LOAN_IN]; /* nearly always empty: a connection has one page of all this */
  uint8_t out[BERTHA_LOAN_OUT];
};

/* ---- table -------------------------------------------------------------------------------------- */

enum bertha_conn_kind {
  BERTHA_CONN_FREE = 0,
  BERTHA_CONN_SOCKET = 1, /* a TCP socket, neither listening nor connected yet */
  BERTHA_CONN_LISTENER = 2,
  BERTHA_CONN_PLAIN = 3,   /* the kernel carries it, for good */
  BERTHA_CONN_CLAIMED = 4, /* client: plain until the server attaches */
  BERTHA_CONN_MAYBE = 5,   /* server: plain until the client's claim is seen */
  BERTHA_CONN_SHM = 6,
  BERTHA_CONN_UNIX = 7,
  BERTHA_CONN_CARRIED = 8, /* for the agent's eyes: SHM, and its other end is a carrier */
};

#define BERTHA_FAMILY_DATAGRAMS 0x100u /* a UDP socket */
#define BERTHA_HELD_ABROAD                                                                                   \
  UINT32_MAX /* also by programs that were executed: their processes are not known here */

/* What the agent and `bertha ps` read of a connection; the first member of the shim's own record. */
/* 1 + BERTHA_CARRIER_* of the carrier that has it, 0: none; that of one beside it (never 0); datagrams have gone by memory. */
#define BERTHA_CARRIED_BY(carried) ((carried)&0xfu)
#define BERTHA_CARRIED_BESIDE(carried) ((carried) >> 4 & 0xfu)
#define BERTHA_CARRIED_BOXED 0x100u

struct bertha_conn_info {
  _Atomic uint32_t kind;
  _Atomic uint32_t refs;
  uint32_t pid;
  uint32_t role;   /* BERTHA_SIDE_* */
  uint32_t reason; /* enum bertha_reason */
  uint32_t setup_us;
  uint64_t opened_ns; /* CLOCK_REALTIME */
  uint8_t local_addr[16];
  uint8_t peer_addr[16];
  uint16_t local_port;
  uint16_t peer_port;
  uint32_t family;          /* AF_*, | BERTHA_FAMILY_DATAGRAMS */
  _Atomic uint32_t carried; /* BERTHA_CARRIED_* above; on SHM, a carrier is reached over a ring */
  /* The process that has used it last and has not closed it since (core/orphans.c); 0: nobody known, BERTHA_HELD_ABROAD. */
  _Atomic uint32_t holder;
  _Atomic uint64_t tx_bytes;
  _Atomic uint64_t rx_bytes;
};

struct bertha_table_header {
  uint32_t magic;
  uint32_t version;
  uint32_t conn_count;
  uint32_t conn_size; /* stride of the records */
  uint64_t conn_offset;
  _Atomic uint32_t used; /* records ever used: readers look at no more than these */
  uint8_t pad[BERTHA_CACHELINE - 28];
};

/* Why a connection is plain, or not on a better implementation.  The texts are in reason.c, and
 * the same in bertha_socket/reasons.py (a test compares them). */
enum bertha_reason {
  BERTHA_WHY_NONE = 0,
  BERTHA_WHY_NO_AGENT = 1,
  BERTHA_WHY_PEER_UNAWARE = 2,
  BERTHA_WHY_NOT_LISTED = 3,
  BERTHA_WHY_NOT_ATTACHED = 4,
  BERTHA_WHY_REFUSED_BY_AGENT = 5,
  BERTHA_WHY_POLICY = 6,
  BERTHA_WHY_OTHER_USER = 7,
  BERTHA_WHY_NO_MEMORY = 8,
  BERTHA_WHY_NO_DESCRIPTOR = 9,
  BERTHA_WHY_LINK_FULL = 10,
  BERTHA_WHY_CLAIMS_FULL = 11,
  BERTHA_WHY_TABLE_FULL = 12,
  BERTHA_WHY_IO_URING = 13,
  BERTHA_WHY_INHERITED = 14,
  BERTHA_WHY_CORRUPT = 15,
  BERTHA_WHY_AMBIGUOUS = 16,
  BERTHA_WHY_KERNEL_ASKED = 17,
  BERTHA_WHY_DISABLED = 18,
  BERTHA_WHY_VERSION = 19,
  BERTHA_WHY_FASTOPEN = 20,
  BERTHA_WHY_PASSED_ON = 21,
  BERTHA_WHY_SHM_PROHIBITED = 22,
  BERTHA_WHY_NEVER_CONNECTED = 23,
  BERTHA_WHY_CHUNNEL_REFUSED = 24,
  BERTHA_WHY_NO_CARRIER = 25,
  BERTHA_WHY_CHUNNEL_FAILED = 26,
  BERTHA_WHY_BRIEF = 27,
  BERTHA_WHY_AGENT_NEW = 28,
  BERTHA_WHY_CHUNNEL_RAISED = 29,
  BERTHA_WHY_SECCOMP = 30,
  BERTHA_WHY_NO_RINGS = 31,
  BERTHA_WHY_ALL_BY_UDP = 32,
  BERTHA_WHY_POLICY_UNREAD = 33,
  BERTHA_WHY_BRIEF_PROCESS = 34,
  BERTHA_WHY_COUNT
};

/* Which processes are alike, for bertha_dir_entry's `brief`: of one user, and called by the same words, as far as the third
 * (/proc/PID/cmdline: each ends with NUL).  FNV-1a; never 0. */
#define BERTHA_BRIEF_WORDS 3
#define BERTHA_BRIEF_BYTES 512
static inline uint32_t bertha_brief_kind(uint32_t uid, const char *args, size_t size) {
  uint32_t h = 2166136261u ^ uid;
  for (size_t i = 0, words = 0; i < size && i < BERTHA_BRIEF_BYTES && words < BERTHA_BRIEF_WORDS; i++) {
    h = (h ^ (uint8_t)args[i]) * 16777619u;
    words += args[i] == '\0';
  }
  return h != 0 ? h : 1;
}

/* The kind of process, and until when (CLOCK_MONOTONIC in units of 2^20 ns, which come again after 52 days). */
static inline uint64_t bertha_brief_word(uint32_t kind, int64_t until_ns) {
  return (uint64_t)kind << 32 | (uint32_t)((uint64_t)until_ns >> 20);
}
static inline int bertha_brief_holds(uint64_t word, uint32_t kind, int64_t now_ns) {
  uint32_t left = (uint32_t)word - (uint32_t)((uint64_t)now_ns >> 20);
  return (uint32_t)(word >> 32) == kind && left != 0 && left <= BERTHA_BRIEF_MOST;
}

/* FNV-1a over address and port; the agent's writer and the shim's reader both call it. */
static inline uint32_t bertha_dir_hash(const uint8_t addr[16], uint16_t port) {
  uint32_t h = 2166136261u;
  for (int i = 0; i < 16; i++) {
    h = (h ^ addr[i]) * 16777619u;
  }
  h = (h ^ (port & 0xffu)) * 16777619u;
  h = (h ^ (uint32_t)(port >> 8)) * 16777619u;
  return h;
}

static inline uint64_t bertha_claim_word(uint32_t tag, uint32_t link, uint32_t slot) {
  return ((uint64_t)(tag & 0xffffffu) << 40) | ((uint64_t)(link & 0xffffffu) << 16) | (slot & 0xffffu);
}

#endif
