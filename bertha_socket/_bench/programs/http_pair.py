"""http.server and urllib: ``http_pair.py server ADDRESS PORT`` or ``client ADDRESS PORT SECONDS``.

The client opens a URL after the other, a connection each.  Prints a JSON object: requests, wall_ns, cpu_ns.
"""

from __future__ import annotations

import http.server
import json
import sys
import time
import urllib.request

_BODY = b"x" * 64


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """As http.server calls it."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(_BODY)))
        self.end_headers()
        self.wfile.write(_BODY)

    def log_message(self, *_: object) -> None:
        """Nothing: a line for each request would be measured."""


def _serve(address: str, port: int) -> None:
    server = http.server.ThreadingHTTPServer((address, port), _Handler)
    print("ready", flush=True)
    server.serve_forever()


def _ask(address: str, port: int, seconds: float) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url = f"http://{address}:{port}/"
    done, begin, begin_cpu = 0, time.monotonic_ns(), time.process_time_ns()
    while time.monotonic_ns() - begin < seconds * 1e9:
        with opener.open(url, timeout=20) as answer:
            if answer.read() != _BODY:
                raise SystemExit("another body came")
        done += 1
    wall, cpu = time.monotonic_ns() - begin, time.process_time_ns() - begin_cpu
    print(json.dumps({"requests": done, "wall_ns": wall, "cpu_ns": cpu}))


if __name__ == "__main__":
    if sys.argv[1] == "server":
        _serve(sys.argv[2], int(sys.argv[3]))
    else:
        _ask(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
