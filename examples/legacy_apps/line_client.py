#!/usr/bin/env python3
"""A line client: sends each line of its standard input to ADDRESS PORT and prints the line that comes back.

    printf 'SET colour blue\nGET colour\n' | ./line_client.py 127.0.0.1 7000

With --load CONNECTIONS REQUESTS it asks for one key again and again instead, on that many connections, and
prints requests per second and the latency's p50 and p99 in microseconds.
"""

import socket
import sys
import threading
import time


def connect(address, port):
    sock = socket.create_connection((address, port), timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def talk(address, port):
    with connect(address, port) as sock, sock.makefile("r") as answers:
        for line in sys.stdin:
            sock.sendall(line.encode())
            answer = answers.readline()
            if not answer:
                sys.exit("the server ended the connection")
            print(answer, end="", flush=True)


def load(address, port, connections, requests):
    latencies = []
    failed = []

    def ask(number):
        try:
            with connect(address, port) as sock, sock.makefile("rb") as answers:
                sock.sendall(b"SET key-%d some-value\n" % number)
                answers.readline()
                times = []
                for _ in range(requests // connections):
                    began = time.perf_counter()
                    sock.sendall(b"GET key-%d\n" % number)
                    answer = answers.readline()
                    times.append(time.perf_counter() - began)
                    if answer != b"VALUE some-value\n":
                        raise OSError(f"wrong answer {answer!r}")
                latencies.extend(times)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(connections)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    if failed:
        sys.exit(f"line_client: {failed[0]}")
    latencies.sort()
    p50, p99 = (latencies[int(len(latencies) * q)] * 1e6 for q in (0.5, 0.99))
    print(f"{len(latencies) / took:.0f} requests/s, p50 {p50:.1f} us, p99 {p99:.1f} us")


def main():
    words = sys.argv[1:]
    if len(words) == 2:
        talk(words[0], int(words[1]))
    elif len(words) == 5 and words[2] == "--load":
        load(words[0], int(words[1]), int(words[3]), int(words[4]))
    else:
        sys.exit("usage: line_client.py ADDRESS PORT [--load CONNECTIONS REQUESTS]")


if __name__ == "__main__":
    main()
