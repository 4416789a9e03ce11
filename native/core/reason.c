/* Why a connection is plain TCP, or not on a better implementation, in words: the `reason` of the
 * connection log.  bertha_socket/reasons.py has the same texts (a test compares them). */
#include "reason.h"

#include "layout.h"

/* ASCII without quotes, backslashes or control characters: written into JSON as they are. */
static const char *const texts[BERTHA_WHY_COUNT] = {
    [BERTHA_WHY_NONE] = "no reason: nothing better was possible",
    [BERTHA_WHY_NO_AGENT] = "no agent answered on this host: start one with 'bertha agent'",
    [BERTHA_WHY_PEER_UNAWARE] =
        "the peer did not ask for more: it is not under bertha-run, or chose plain TCP",
    [BERTHA_WHY_NOT_LISTED] = "no program under bertha-run is known to listen on this address on this host",
    [BERTHA_WHY_NOT_ATTACHED] = "the peer never tied its end of the connection to shared memory",
    [BERTHA_WHY_REFUSED_BY_AGENT] =
        "the agent refused: the listener is unconfirmed, or out of reach for the caller",
    [BERTHA_WHY_POLICY] = "a rule of the policy file chose this implementation",
    [BERTHA_WHY_OTHER_USER] =
        "the peer belongs to another user; only a system agent (run by root) may join the two",
    [BERTHA_WHY_NO_MEMORY] = "shared memory could not be made or mapped: a memory limit is reached",
    [BERTHA_WHY_NO_DESCRIPTOR] = "no file descriptor was left: raise the limit with 'ulimit -n'",
    [BERTHA_WHY_LINK_FULL] = "all slots between this process and this listener are taken",
    [BERTHA_WHY_CLAIMS_FULL] = "the listener's table of waiting connections is full",
    [BERTHA_WHY_TABLE_FULL] = "this process's table of connections is full",
    [BERTHA_WHY_IO_URING] =
        "the program uses io_uring, whose operations cannot be seen from outside the kernel",
    [BERTHA_WHY_INHERITED] =
        "the connection was handed to another program before it was tied to shared memory",
    [BERTHA_WHY_CORRUPT] = "the peer wrote something impossible into shared memory",
    [BERTHA_WHY_AMBIGUOUS] = "several listeners have this address and the right one could not be told",
    [BERTHA_WHY_KERNEL_ASKED] = "the program made a call that only the kernel can serve on this connection",
    [BERTHA_WHY_DISABLED] = "BERTHA_DISABLE is set",
    [BERTHA_WHY_VERSION] =
        "the two ends, or a program and its agent, have different versions of bertha-socket",
    [BERTHA_WHY_FASTOPEN] = "the program sent data with the connection request (TCP Fast Open)",
    [BERTHA_WHY_PASSED_ON] = "the descriptor was passed to another process, which may know nothing but TCP",
    [BERTHA_WHY_SHM_PROHIBITED] = "a rule of the policy file prohibits shared memory",
    [BERTHA_WHY_NEVER_CONNECTED] = "the connection was never established",
    [BERTHA_WHY_CHUNNEL_REFUSED] = "a required chunnel cannot be had with this peer",
    [BERTHA_WHY_NO_CARRIER] = "no carrier process could be started for the chunnels of this connection",
    [BERTHA_WHY_CHUNNEL_FAILED] = "a chunnel of this connection failed: its bytes were altered or cut off",
    [BERTHA_WHY_BRIEF] = "connections to this listener end after one exchange: plain TCP sets up faster",
    [BERTHA_WHY_BRIEF_PROCESS] =
        "processes called like this one end after one exchange with this listener: plain TCP sets up faster",
    [BERTHA_WHY_AGENT_NEW] = "the agent was started after this listener, and did not know of it yet",
    [BERTHA_WHY_CHUNNEL_RAISED] = "a chunnel's own code failed",
    [BERTHA_WHY_SECCOMP] =
        "the program has installed a seccomp filter, which may forbid the shim's own calls",
    [BERTHA_WHY_NO_RINGS] = "the carrier of its chunnels has no rings here, and is reached by unix sockets",
    [BERTHA_WHY_ALL_BY_UDP] =
        "none went by memory: the peer is not under bertha-run, or slept at each datagram",
    [BERTHA_WHY_POLICY_UNREAD] =
        "the agent cannot use the policy file: it is not there for it, wrong, or too slow",
};

const char *bertha_reason_text(uint32_t reason) {
  return reason < BERTHA_WHY_COUNT && texts[reason] != 0 ? texts[reason] : "unknown reason";
}
