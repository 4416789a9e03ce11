"""PORT: calls of servers.py's XML-RPC server, on one kept connection; prints "ok"."""

from __future__ import annotations

import sys
import xmlrpc.client


def main() -> None:
    """Small calls and one of a megabyte."""
    with xmlrpc.client.ServerProxy(f"http://127.0.0.1:{sys.argv[1]}/") as proxy:
        for n in range(50):
            assert proxy.pow(2, n % 30) == 2 ** (n % 30)
        text = "abc" * 350_000
        assert proxy.reverse(text) == text[::-1]
    print("ok")


if __name__ == "__main__":
    main()
