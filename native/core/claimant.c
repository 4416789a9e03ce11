/* Whose socket the other half of a connection is: the kernel says by sock_diag, in the server's own network namespace.
 *
 * The half is looked up by both addresses and ports.  The kernel's look-up falls back on listeners, and a socket that only
 * tries to connect may have any addresses: what counts is a connection that is there, with these very ends. */
#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/stat.h>

#include "agentc.h"
#include "claimant.h"
#include "conn.h"
#include "quiet.h"
#include "shim.h"

enum owner { OWNER_UNKNOWN, OWNER_NOT_HERE, OWNER_HERE };

struct end {
  uint8_t addr[16];
  uint16_t port;
};

static void write_address(__be32 to[4], const uint8_t addr[16], bool v4) {
  memcpy(to, addr + (v4 ? 12 : 0), v4 ? 4 : 16);
}

static bool is_address(const __be32 said[4], uint8_t family, const uint8_t addr[16]) {
  return family == AF_INET ? address_is_v4(addr) && memcmp(said, addr + 12, 4) == 0
                           : memcmp(said, addr, 16) == 0;
}

static bool there(uint8_t state) {
  return state == TCP_ESTABLISHED || state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 ||
         state == TCP_CLOSE_WAIT || state == TCP_LAST_ACK || state == TCP_CLOSING;
}

static enum owner ask(int diag, const struct end *own, const struct end *far, uint32_t scope, uint32_t *uid) {
  struct {
    struct nlmsghdr head;
    struct inet_diag_req_v2 body;
  } question = {
      .head = {.nlmsg_len = sizeof question, .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST},
      .body = {.sdiag_protocol = IPPROTO_TCP,
               .idiag_states = ~0u,
               .id = {.idiag_if = scope, .idiag_cookie = {INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE}}}};
  bool v4 = address_is_v4(own->addr) && address_is_v4(far->addr);
  question.body.sdiag_family = v4 ? AF_INET : AF_INET6;
  write_address(question.body.id.idiag_src, own->addr, v4);
  write_address(question.body.id.idiag_dst, far->addr, v4);
  question.body.id.idiag_sport = htons(own->port);
  question.body.id.idiag_dport = htons(far->port);
  union {
    struct nlmsghdr head;
    uint8_t space[4096];
  } answer;
  struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
  if (REAL(sendto)(diag, &question, sizeof question, MSG_DONTWAIT, (struct sockaddr *)&kernel,
                   sizeof kernel) != (ssize_t)sizeof question) {
    return OWNER_UNKNOWN;
  }
  struct sockaddr_nl from = {.nl_pid = 1};
  socklen_t size = sizeof from;
  ssize_t n = REAL(recvfrom)(diag, &answer, sizeof answer, MSG_DONTWAIT, (struct sockaddr *)&from, &size);
  if (n < (ssize_t)sizeof answer.head || from.nl_pid != 0 || answer.head.nlmsg_len > (size_t)n) {
    return OWNER_UNKNOWN;
  }
  if (answer.head.nlmsg_type == NLMSG_ERROR &&
      answer.head.nlmsg_len >= NLMSG_LENGTH(sizeof(struct nlmsgerr))) {
    const struct nlmsgerr *error = NLMSG_DATA(&answer.head);
    return error->error == -ENOENT ? OWNER_NOT_HERE : OWNER_UNKNOWN;
  }
  const struct inet_diag_msg *said = NLMSG_DATA(&answer.head);
  if (answer.head.nlmsg_type != SOCK_DIAG_BY_FAMILY || answer.head.nlmsg_len < NLMSG_LENGTH(sizeof *said)) {
    return OWNER_UNKNOWN;
  }
  *uid = said->idiag_uid;
  bool exact = said->id.idiag_sport == htons(own->port) && said->id.idiag_dport == htons(far->port) &&
               is_address(said->id.idiag_src, said->idiag_family, own->addr) &&
               is_address(said->id.idiag_dst, said->idiag_family, far->addr);
  return exact && there(said->idiag_state) ? OWNER_HERE : OWNER_NOT_HERE;
}

static enum owner owner_of(int fd, const struct sockaddr *local, const struct sockaddr *peer, uint32_t *uid) {
  struct end own;
  struct end far;
  if (!address_of(peer, own.addr, &own.port) || !address_of(local, far.addr, &far.port)) {
    return OWNER_UNKNOWN;
  }
  uint32_t scope = 0;
  if (peer->sa_family == AF_INET6) {
    scope = ((const struct sockaddr_in6 *)(const void *)peer)->sin6_scope_id;
  }
  int diag = REAL(socket)(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
  if (diag < 0) {
    return OWNER_UNKNOWN;
  }
  uint64_t netns = bertha_netns(fd); /* the thread may have moved to another one since */
  enum owner found =
      netns != 0 && bertha_netns(diag) == netns ? ask(diag, &own, &far, scope, uid) : OWNER_UNKNOWN;
  QUIET(close)(diag);
  return found;
}

/* The kernel tells users' numbers as our user namespace has them. */
static bool same_numbers(const struct bertha_claimant *claimant) {
  struct stat st;
  return claimant->users != 0 && stat("/proc/self/ns/user", &st) == 0 && st.st_ino == claimant->users;
}

bool claimant_owns(const struct bertha_claimant *claimant, int fd, const struct sockaddr *local,
                   const struct sockaddr *peer) {
  int saved = errno;
  uint32_t uid = 0;
  enum owner found = owner_of(fd, local, peer, &uid);
  bool owns = found == OWNER_HERE ? uid == claimant->uid && same_numbers(claimant)
                                  : found == OWNER_NOT_HERE && claimant->proof == BERTHA_PROOF_ELSEWHERE;
  errno = saved;
  return owns;
}
