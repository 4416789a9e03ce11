"""Lets two programs make a sequence of calls one after the other, and compares a plain run with one on
shared memory.

A difference counts when it is there each time: what a call gives may depend on how far the kernel has got
with the one before, in the plain run too.  A difference that lasts is made as small as possible and can be
replayed:

    python -m tests.differential.lockstep [--unix | --flood] SEED [LAST_SEED]     (or a file with the steps)
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.differential.driver import pattern
from tests.differential.generate import Generator, Step

_ROOT = Path(__file__).parents[2]
_BIN = Path(sys.executable).parent
_PATIENCE_S = 8.0

Reply = dict[str, Any]


class StuckError(AssertionError):
    """A program did not answer: a call waits for ever, or the program died."""


class _Actor:
    """One program, or the child that it has forked."""

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self.channel = channel
        self.pid = pid
        channel.settimeout(_PATIENCE_S)

    def ask(self, step: Step) -> None:
        text = json.dumps({k: v for k, v in step.items() if k != "who"}).encode()
        self.channel.sendall(struct.pack("=I", len(text)) + text)

    def answer(self, step: Step) -> Reply:
        try:
            size = struct.unpack("=I", self._read(4))[0]
            reply: Reply = json.loads(self._read(size))
        except (TimeoutError, EOFError, ConnectionError) as error:
            raise StuckError(f"no answer ({type(error).__name__}) to {step}") from None
        return reply

    def _read(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            part = self.channel.recv(n - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def asleep(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
        except OSError:
            return True


def _is_to_settle(step: Step, reply: Reply) -> bool:
    """What the kernel has to do yet is a matter of time, and seen.

    Nagle's algorithm holds bytes back, and the other end's kernel the acknowledgement of a FIN, up to 40 ms:
    when that comes, who has the connection in an epoll set is woken once more (tcp_rcv_state_process).
    """
    if step["op"] == "shutdown":
        return step["how"] != 0 and reply.get("ret") == 0
    return step["op"] == "send" and reply.get("ret", 0) > 0


class Pair:
    """The two programs, plain or behind `wrapper` (bertha-run)."""

    def __init__(self, wrapper: list[str], environment: dict[str, str]) -> None:
        self.programs: list[subprocess.Popen[bytes]] = []
        self.actors: dict[int, _Actor] = {}
        self.second: list[socket.socket] = []
        self.children: list[tuple[int, int]] = []
        self.ports: dict[int, str] = {}
        for who in (0, 1):
            mine, theirs = socket.socketpair()
            mine2, theirs2 = socket.socketpair()
            command = [
                sys.executable,
                "-m",
                "tests.differential.driver",
                str(theirs.fileno()),
                str(theirs2.fileno()),
            ]
            command = [*wrapper, *command]
            fds = (theirs.fileno(), theirs2.fileno())
            program = subprocess.Popen(
                command,
                env={**environment, "PYTHONPATH": str(_ROOT)},
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                cwd=_ROOT,
            )
            self.programs.append(program)
            self.actors[who] = _Actor(mine, program.pid)
            self.second.append(mine2)
            theirs.close()
            theirs2.close()

    def close(self) -> None:
        """Ends the programs and their children."""
        for actor in self.actors.values():
            actor.channel.close()
        for channel in self.second:
            channel.close()
        for program in self.programs:
            try:
                program.wait(10)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()

    # -- one sequence -------------------------------------------------------------------------------

    def run(self, steps: list[Step], port: int) -> list[Any]:
        """What each step gave, in a form that can be compared."""
        self.ports = {port: "PORT"}
        out = [self._step(step, port) for step in steps]
        out.append(self._finish())
        return out

    def _call(self, step: Step) -> Reply:
        actor = self.actors.get(step["who"])
        if actor is None:
            return {"skipped": True}
        actor.ask(step)
        return actor.answer(step)

    def _step(self, step: Step, port: int) -> Any:
        if "pair" in step:
            wait, end = step["pair"]
            if wait["who"] not in self.actors or end["who"] not in self.actors:
                return "skipped"
            waiter = self.actors[wait["who"]]
            waiter.ask(wait)
            deadline = time.monotonic() + 0.005
            while not waiter.asleep() and time.monotonic() < deadline:
                pass
            ended = self._call(end)
            if _is_to_settle(end, ended):
                self._call({"who": end["who"], "op": "settle", "h": end["h"], "ms": 60})
            return [self._same(waiter.answer(wait)), self._same(ended)]
        if "pump" in step:
            return self._pump(step)
        if "address" in step:
            step = {**step, "address": [port if a == "PORT" else a for a in step["address"]]}
        reply = self._call(step)
        if _is_to_settle(step, reply):
            self._call({"who": step["who"], "op": "settle", "h": step["h"], "ms": 60})
        if step["op"] == "fork" and "pid" in reply:
            self.actors[step["who"] + 2] = _Actor(self.second[step["who"]], reply["pid"])
            self.children.append((step["who"], reply["pid"]))
            return "forked"
        return self._same(reply)

    def _same(self, reply: Reply) -> Reply:
        """Ports by the order of their appearance."""
        address = reply.get("address")
        if address is not None and len(address) == 3:
            name = self.ports.setdefault(address[1], f"port {len(self.ports)}") if address[1] else "0"
            reply["address"] = [address[0], name, address[2]]
        return reply

    def _pump(self, step: Step) -> Any:
        """A long message, as fast as both sides go; only its content and how it ends can be compared."""
        who, h, other, there = step["pump"]
        if who not in self.actors or other not in self.actors:
            return "skipped"
        before = self._call({"who": other, "op": "drain", "h": there, "size": 65536})
        data = pattern(step["stream"], step["size"])
        sent = got = idle = 0
        end: object = None
        while got < len(data) and idle < 200:
            push = {"who": who, "op": "push", "h": h, "size": len(data), "stream": step["stream"]}
            pushed = self._call({**push, "done": sent})
            pulled = self._call({"who": other, "op": "pull", "h": there, "size": len(data) - got})
            if "sent" not in pushed or "got" not in pulled:
                return [before, "skipped"]
            if bytes.fromhex(pulled["hex"]) != data[got : got + pulled["got"]]:
                return [before, f"other bytes at {got}"]
            moved = pushed["sent"] > sent or pulled["got"] > 0
            sent, got = pushed["sent"], got + pulled["got"]
            end = [pulled["end"], pulled["errno"] not in (0, 11) and pulled["errno"]]
            hopeless = pulled["end"] or pushed["errno"] not in (0, 11) or pulled["errno"] not in (0, 11)
            idle = 0 if moved else idle + 1
            if hopeless and not moved:
                break
            if not moved:
                time.sleep(0.0005)  # the kernel's window opens by a timer at times
        return [before, "complete" if got == len(data) else ["not complete", end]]

    def _finish(self) -> Any:
        """Reads what is left, ends the children, closes everything."""
        for who in (2, 3):
            if who in self.actors:
                # its copies are closed by its end
                actor = self.actors.pop(who)
                actor.channel.shutdown(socket.SHUT_WR)
        for who, pid in self.children:
            self._call({"who": who, "op": "reap", "pid": pid})
        used = bool(self.children)
        self.children = []
        for who in (1, 0):
            self._call({"who": who, "op": "reset"})
        return "forked" if used else "end"


@dataclass
class Difference:
    """Where the two runs part."""

    step: int
    what: Any
    plain: Any
    shim: Any

    @property
    def kind(self) -> str:
        """What two differences of one cause have in common, roughly."""
        call = self.what
        if isinstance(call, dict):
            call = [call.get("op", sorted(call)), call.get("call")]
        return json.dumps([call, _outline(self.plain), _outline(self.shim)])

    @property
    def grave(self) -> bool:
        """Never to be put up with: other bytes, bytes that never arrive, a call that never returns."""
        if self.what == "stuck" or "no answer" in f"{self.plain}{self.shim}":
            return True
        if isinstance(self.what, dict) and "pump" in self.what:
            return True
        return _other_bytes(self.plain, self.shim)

    def __str__(self) -> str:
        return f"step {self.step}: {json.dumps(self.what)}\n    plain {self.plain}\n    shim  {self.shim}"


def _other_bytes(plain: Any, shim: Any) -> bool:
    """As many bytes received, but different ones."""
    if isinstance(plain, list) and isinstance(shim, list):
        return any(_other_bytes(a, b) for a, b in zip(plain, shim, strict=False))
    if not (isinstance(plain, dict) and isinstance(shim, dict)):
        return False
    how_many = [[r.get("ret"), r.get("lengths"), r.get("total")] for r in (plain, shim)]
    return how_many[0] == how_many[1] and plain.get("data") != shim.get("data")


def _outline(result: Any) -> Any:
    if isinstance(result, dict):
        ret = result.get("ret", 0)
        return [ret if ret <= 0 else "some", result.get("errno"), result.get("events"), result.get("revents")]
    return str(result)[:20]


class Comparison:
    """Runs sequences both ways; programs are used again until one of them is spoilt."""

    def __init__(self, environment: dict[str, str], free_port: Callable[[], int]) -> None:
        self.environment = environment
        self.free_port = free_port
        self.pairs: dict[bool, Pair | None] = {False: None, True: None}
        self.shim_command = [str(_BIN / "bertha-run"), "--require", "--"]
        # for the test of this very thing: calls that set 0 for the second pair
        self.spoil: dict[str, str] | None = None

    def close(self) -> None:
        """Ends all programs."""
        for shim in (False, True):
            self._drop(shim)

    def _drop(self, shim: bool) -> None:
        pair = self.pairs[shim]
        if pair is not None:
            pair.close()
        self.pairs[shim] = None

    def _run(self, steps: list[Step], shim: bool) -> list[Any]:
        pair = self.pairs[shim]
        if pair is None:
            wrapper = self.shim_command if shim else []
            pair = self.pairs[shim] = Pair(wrapper, self.environment)
        if shim and self.spoil is not None:
            hidden = self.spoil.items()
            steps = [{**s, "value": 0} if hidden <= s.items() else s for s in steps]
        try:
            out = pair.run(steps, self.free_port())
        except StuckError as error:
            self._drop(shim)
            return [str(error)]
        if out[-1] == "forked":  # the second control channel is used up
            self._drop(shim)
        return out

    def once(self, steps: list[Step]) -> Difference | None:
        """Both runs, and the first step that differs."""
        plain, shim = self._run(steps, False), self._run(steps, True)
        for i, (a, b) in enumerate(zip(plain, shim, strict=False)):
            if a != b:
                return Difference(i, steps[i] if i < len(steps) else "end", a, b)
        if len(plain) != len(shim):
            return Difference(min(len(plain), len(shim)), "stuck", plain[-1], shim[-1])
        return None

    def lasting(self, steps: list[Step], tries: int = 3) -> Difference | None:
        """A difference that is there every time, or None."""
        found = None
        for _ in range(tries):
            found = self.once(steps)
            if found is None:
                return None
        return found

    def smallest(self, steps: list[Step], seconds: float = 60.0) -> list[Step]:
        """As few of the steps as still differ, as far as the time allows."""
        deadline = time.monotonic() + seconds
        wanted = self.once(steps)
        if wanted is None:
            return steps
        if wanted.what != "stuck":
            steps = steps[: wanted.step + 1]
        size = max(len(steps) // 2, 1)

        def same(candidate: list[Step]) -> bool:
            found = self.lasting(candidate, 2)
            return found is not None and found.kind == wanted.kind

        while True:
            at, shorter = 0, False
            while at < len(steps):
                if time.monotonic() > deadline:
                    return steps
                # what has lost its timeout would wait for ever
                part = [s for s in steps[at : at + size] if s.get("op") == "timeout"]
                candidate = steps[:at] + part + steps[at + size :]
                if len(candidate) < len(steps) and same(candidate):
                    steps, shorter = candidate, True
                else:
                    at += size
            if size > 1:
                size //= 2
            elif not shorter:
                return steps


def prefer_unix(directory: Path) -> dict[str, str]:
    """The environment for a run over unix sockets instead of shared memory."""
    policy = directory / "unix.toml"
    policy.write_text('[[rule]]\nprohibit = ["shm"]\n')
    return {"BERTHA_POLICY": str(policy)}


def main() -> None:
    """Replays a seed or a file, with an agent of its own; prints where the runs part."""
    from tests.harness.hosts import Host, free_port

    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    unix, flood = "--unix" in sys.argv, "--flood" in sys.argv
    source = words[0]
    steps = json.loads(Path(source).read_text()) if os.path.exists(source) else None
    host = Host()
    comparison = Comparison(host.environment(prefer_unix(host.dir) if unix else {}), free_port)
    try:
        last = int(words[-1]) if steps is None else 0
        seeds = [source] if steps else range(int(source), last + 1)
        known: set[str] = set()
        for seed in seeds:
            chosen = steps or Generator(int(seed), gentle=unix, flood=flood).sequence()
            difference = comparison.lasting(chosen)
            if difference is None or difference.kind in known:
                continue
            known.add(difference.kind)
            print(f"seed {seed}: {difference}", flush=True)
            least = comparison.smallest(chosen)
            print(f"at the least: {comparison.lasting(least)}")
            for step in least:
                print("   ", json.dumps(step), flush=True)
        carried = [c.implementation for c in host.connlog()]
        print({name: carried.count(name) for name in sorted(set(carried))})
    finally:
        comparison.close()
        host.close()
        host.remove()


if __name__ == "__main__":
    main()
