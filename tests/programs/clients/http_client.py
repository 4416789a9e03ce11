"""PORT [CERTIFICATE]: http.client on one kept connection, then urllib with one each; prints "ok"."""

from __future__ import annotations

import http.client
import ssl
import sys
import urllib.request

SIZES = [0, 1, 1000, 70_000, 3_000_000]


def main() -> None:
    """Downloads and uploads of every size, both ways to ask."""
    port = int(sys.argv[1])
    context = ssl.create_default_context(cafile=sys.argv[2]) if len(sys.argv) > 2 else None
    connection: http.client.HTTPConnection
    if context:
        connection = http.client.HTTPSConnection("localhost", port, timeout=15, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
    for size in SIZES:
        connection.request("GET", f"/{size}")
        assert connection.getresponse().read() == b"g" * size
        connection.request("POST", "/", body=b"p" * size)
        assert connection.getresponse().read() == b"p" * size
    connection.close()
    place = f"https://localhost:{port}/" if context else f"http://127.0.0.1:{port}/"
    for size in SIZES:
        with urllib.request.urlopen(f"{place}{size}", timeout=15, context=context) as answer:
            assert answer.read() == b"g" * size
        with urllib.request.urlopen(place, b"p" * size, timeout=15, context=context) as answer:
            assert answer.read() == b"p" * size
    print("ok")


if __name__ == "__main__":
    main()
