"""The native carrier's chunnels as pipes, so that the kit can drive them.

The very sources, in a library that a test builds for itself, with what a session does around them
(native/tests/chunnel_kit.c).
"""

from __future__ import annotations

import shlex
import subprocess
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgpack
from cffi import FFI

from bertha_socket.chunnels import ChunnelError, Context, Pipe
from bertha_socket.chunnels._types import octets

_NATIVE = Path(__file__).resolve().parents[2] / "native"
_LIBRARIES = ("-lssl", "-lcrypto", "-lzstd", "-llz4")
_WHY_SIZE = 200
#: Turns that a stage may take for what it has been given.
_TURNS_MAX = 10_000

_ffi = FFI()
_ffi.cdef("""
struct kit;
struct kit *kit_open(const char *type, bool server, const char *wire, const uint8_t *args, size_t size,
                     const char *certificate, const char *key, const char *ca, char *why);
bool kit_add(struct kit *k, bool up, const uint8_t *data, size_t size, bool end);
bool kit_turn(struct kit *k);
void kit_idle(struct kit *k);
bool kit_lend(struct kit *k);
size_t kit_size(const struct kit *k, bool up, bool out);
void kit_take(struct kit *k, bool up, uint8_t *to, size_t size);
bool kit_done(const struct kit *k, bool up);
const char *kit_why(const struct kit *k);
void kit_close(struct kit *k);
""")


def _stages() -> list[Path]:
    """`reliable` is none: it is a pipe in Python (test_reliable_twins.py)."""
    return sorted(p for p in (_NATIVE / "chunnels").glob("*.c") if not p.stem.startswith("reliable"))


def types() -> set[str]:
    """The chunnel types that the native carrier has."""
    return {path.stem for path in _stages()}


def build(directory: Path) -> Any:
    """The library, compiled into `directory`.  Raises CalledProcessError."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
    others = ("carrier/pack.c", "core/records.c", "core/libcrypto.c", "tests/chunnel_kit.c")
    sources = [*_stages(), *(_NATIVE / name for name in others)]
    target = directory / "chunnel_kit.so"
    words = [
        compiler,
        "-std=gnu11",
        "-D_GNU_SOURCE",
        "-O1",
        "-g",
        "-fPIC",
        "-shared",
        f"-I{_NATIVE / 'core'}",
    ]
    subprocess.run([*words, *map(str, sources), "-o", str(target), *_LIBRARIES], check=True, timeout=300)
    return _ffi.dlopen(str(target))


class NativePipe(Pipe):
    """One stage.  `lends`: whenever it rests a program could go on from there, and gives it back at once."""

    def __init__(
        self,
        library: Any,
        kind: str,
        args: Mapping[str, Any],
        wire: str,
        side: str,
        context: Context,
        *,
        lends: bool = False,
    ) -> None:
        super().__init__(args, wire, side, context)
        self._lends = lends
        self.lent = 0
        self._lib, self._kind = library, kind
        material = context.material or {}
        packed = msgpack.packb(dict(args))
        why = _ffi.new("char[]", _WHY_SIZE)
        # A session keeps what its agent gave; here they live as long as the pipe.
        self._texts = {
            n: _ffi.new("char[]", material[n].encode()) for n in ("certificate", "key", "ca") if n in material
        }
        secrets = [self._texts.get(n, _ffi.NULL) for n in ("certificate", "key", "ca")]
        self._kit = library.kit_open(
            kind.encode(), side == "server", wire.encode(), packed, len(packed), *secrets, why
        )
        if not self._kit:
            raise ChunnelError(_ffi.string(why).decode())
        self._turns = 0

    def start(self) -> Iterable[bytes]:
        return self._quiet(self._turn())

    def down(self, item: Any) -> Iterable[bytes]:
        data = octets(item, self._kind)
        if self._lib.kit_done(self._kit, False) or self.lingers_down:
            raise ChunnelError(f"{self._kind}: a session reads no more after the program's end")
        return self._quiet(self._turn(down=data))

    def down_end(self) -> Iterable[bytes]:
        return self._quiet(self._turn(down=b"", end=True))

    def up(self, item: Any) -> tuple[Iterable[bytes], Iterable[bytes]]:
        return self._turn(up=octets(item, self._kind))

    def up_end(self) -> Iterable[bytes]:
        risen, down = self._turn(up=b"", end=True)
        assert not down, "it answers the network's end"
        return risen

    def close(self) -> None:
        if self._kit:
            self._lib.kit_close(self._kit)
            self._kit = None

    @staticmethod
    def _quiet(moved: tuple[list[bytes], list[bytes]]) -> list[bytes]:
        assert not moved[0], "something comes up of what goes down"
        return moved[1]

    def _turn(
        self, *, down: bytes | None = None, up: bytes | None = None, end: bool = False
    ) -> tuple[list[bytes], list[bytes]]:
        """Everything that can be moved, up and down."""
        lib, kit = self._lib, self._kit
        if down is not None:
            assert lib.kit_add(kit, False, down, len(down), end)
        if up is not None:
            assert lib.kit_add(kit, True, up, len(up), end)
        risen: list[bytes] = []
        sunk: list[bytes] = []
        for _ in range(_TURNS_MAX):
            before = self._sizes()
            good = lib.kit_turn(kit)
            moved = self._take(True, risen) + self._take(False, sunk)
            if not good:
                why = _ffi.string(lib.kit_why(kit)).decode()
                assert why, "it fails without a reason"
                raise ChunnelError(why, b"".join(sunk))
            if not moved and self._sizes() == before:
                break
        else:
            raise AssertionError("it does not come to rest")
        self.ended_up = lib.kit_done(kit, True)
        self.full_down = lib.kit_size(kit, False, False) > 0
        if end:
            self.lingers_down |= down is not None
            self.lingers_up = up is not None and not self.ended_up
        self.lingers_down &= not lib.kit_done(kit, False)
        self._rest()
        return risen, sunk

    def _sizes(self) -> tuple[int, int, bool, bool]:
        lib, kit = self._lib, self._kit
        return (
            lib.kit_size(kit, False, False),
            lib.kit_size(kit, True, False),
            lib.kit_done(kit, False),
            lib.kit_done(kit, True),
        )

    def _take(self, up: bool, to: list[bytes]) -> int:
        size = self._lib.kit_size(self._kit, up, True)
        if size:
            room = _ffi.new("uint8_t[]", size)
            self._lib.kit_take(self._kit, up, room, size)
            to.append(bytes(_ffi.buffer(room)))
        return int(size)

    def _rest(self) -> None:
        """Now and then a session finds that nothing is under way, and says so."""
        self._turns += 1
        if self._sizes()[:2] == (0, 0):
            if self._turns % 5 == 0:
                self._lib.kit_idle(self._kit)
            if self._lends:
                self.lent += self._lib.kit_lend(self._kit)
