"""Where the policy file is. Apart from policy.py, whose parser `bertha-run` needs only if there is one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

__all__ = ["SYSTEM_FILE", "find_file"]

SYSTEM_FILE: Final = "/etc/bertha/bertha.toml"


def find_file(environ: Mapping[str, str] | None = None) -> str | None:
    """The policy file in force: $BERTHA_POLICY (existing or not), else the user's, else the system's, else
    None."""
    env = os.environ if environ is None else environ
    given = env.get("BERTHA_POLICY")
    if given:
        return os.path.abspath(given)
    config = env.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(config):
        config = os.path.join(env.get("HOME") or os.path.expanduser("~"), ".config")
    for path in (os.path.join(config, "bertha", "bertha.toml"), SYSTEM_FILE):
        if os.path.isfile(path):
            return path
    return None
