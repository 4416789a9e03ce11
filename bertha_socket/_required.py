"""What the policy file in force requires of this process, for the doors that are opened from within.

`bertha-run` reads the file before the program starts; here the program runs already.  As there, a file that
makes no sense is an error and not a plain connection: it may have been the one that forbade that.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from bertha_socket._policy_file import find_file

if TYPE_CHECKING:
    from bertha_socket.policy import Subject

__all__ = ["Required", "required"]


class Required(NamedTuple):
    """Which connections must not be plain even if no agent is there, as BERTHA_MUST has it."""

    #: The policy file; None: there is none.
    path: str | None = None
    #: Of this process; "": none.
    here: str = ""
    #: Of programs that it may start.
    children: str = ""


@cache  # the shim takes note of the file once, too
def required() -> Required:
    """Reads the policy file.  Raises PolicyError (an OSError), and then reads it again the next time."""
    path = find_file()
    if path is None:
        return Required()
    from bertha_socket import policy  # only where there is a file: it costs a program's start

    rules = policy.load(path)
    # The agent reads it, from another working directory; and it may be another user's, with other defaults.
    os.environ["BERTHA_POLICY"] = path
    children = policy.musts(rules)
    return Required(path, policy.musts(rules, _subject()) if children else "", children)


def _subject() -> Subject:
    from bertha_socket.agent.plans import make_subject

    exe = os.readlink("/proc/self/exe")
    with open("/proc/self/cmdline", "rb") as file:
        arguments = tuple(os.fsdecode(word) for word in file.read().split(b"\0")[:-1])
    name = os.environ.get("BERTHA_NAME", "")
    return make_subject(os.path.basename(exe), exe, arguments, os.geteuid(), name)
