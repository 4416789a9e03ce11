"""What an ELF file says about how it will be loaded: read from the file, nothing is run.

Needed before `bertha-run` execs a program: the preload library reaches only programs that the dynamic
loader of the same C library, class and machine loads.  Layouts: System V ABI, `Elf32_Ehdr` ... `Elf64_Shdr`;
Go's sections: cmd/internal/buildid and debug/buildinfo.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

__all__ = ["Elf", "NotElf", "read_elf"]

_PT_INTERP = 3
_PT_DYNAMIC = 2
_SHT_NOBITS = 8
_MACHINES = {
    3: "i386",
    8: "mips",
    20: "ppc",
    21: "ppc64",
    22: "s390",
    40: "arm",
    62: "x86-64",
    183: "aarch64",
}
_MACHINES |= {243: "riscv", 258: "loongarch"}
_TABLE_MAX = 1 << 20  # bytes of a program or section header table; real ones have a few kilobytes
_PATH_MAX = 4096
_GO_SECTIONS = (b".note.go.buildid", b".go.buildinfo")


class NotElf(ValueError):
    """The file is not a well-formed ELF file."""


class Elf(NamedTuple):
    """What the loader will look at."""

    bits: int  # 32 or 64
    machine: int  # e_machine
    little_endian: bool
    interpreter: str | None  # PT_INTERP; None: static (or a library)
    dynamic: bool  # has PT_DYNAMIC
    go: bool  # has one of Go's sections

    @property
    def kind(self) -> str:
        """Class and machine in words, as `64-bit x86-64`."""
        return f"{self.bits}-bit {_MACHINES.get(self.machine, f'machine {self.machine}')}"

    def same_kind(self, other: Elf) -> bool:
        """Whether both can be in one process."""
        mine = (self.bits, self.machine, self.little_endian)
        return mine == (other.bits, other.machine, other.little_endian)


def _at(fd: int, size: int, offset: int) -> bytes:
    if size < 0 or offset < 0 or offset >= 1 << 62:
        raise NotElf("damaged ELF file")
    data = os.pread(fd, size, offset)
    if len(data) != size:
        raise NotElf("truncated ELF file")
    return data


def _table(fd: int, offset: int, entry: int, count: int, form: struct.Struct) -> list[tuple[int, ...]]:
    if count == 0 or offset == 0:
        return []
    if entry < form.size or entry * count > _TABLE_MAX:
        raise NotElf("damaged ELF file")
    data = _at(fd, entry * count, offset)
    return [form.unpack_from(data, i * entry) for i in range(count)]


def _is_go(fd: int, sections: list[tuple[int, ...]], names_index: int) -> bool:
    if names_index >= len(sections):
        return False
    # sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, ...: the same order in both classes
    names = sections[names_index]
    if names[1] == _SHT_NOBITS or not 0 < names[5] <= _TABLE_MAX:
        return False
    text = _at(fd, names[5], names[4])
    for section in sections:
        start = section[0]
        if any(text.startswith(wanted + b"\0", start) for wanted in _GO_SECTIONS):
            return True
    return False


def read_elf(path: str) -> Elf:
    """Reads `path`.  Raises NotElf, and OSError when it cannot be read."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        ident = os.pread(fd, 64, 0)
        if ident[:4] != b"\x7fELF" or len(ident) < 52 or ident[4] not in (1, 2) or ident[5] not in (1, 2):
            raise NotElf("not an ELF file")
        wide = ident[4] == 2
        end = "<" if ident[5] == 1 else ">"
        head = struct.Struct(end + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"))
        if len(ident) < 16 + head.size:
            raise NotElf("truncated ELF file")
        fields = head.unpack_from(ident, 16)
        machine, phoff, shoff = fields[1], fields[4], fields[5]
        phentsize, phnum, shentsize, shnum, shstrndx = fields[8:13]
        segment = struct.Struct(end + ("IIQQQQQQ" if wide else "IIIIIIII"))
        section = struct.Struct(end + ("IIQQQQIIQQ" if wide else "IIIIIIIIII"))

        interpreter = None
        dynamic = False
        for values in _table(fd, phoff, phentsize, phnum, segment):
            kind = values[0]
            # 64: type flags offset vaddr paddr filesz; 32: type offset vaddr paddr filesz
            offset, size = (values[2], values[5]) if wide else (values[1], values[4])
            if kind == _PT_DYNAMIC:
                dynamic = True
            elif kind == _PT_INTERP:
                if not 1 < size <= _PATH_MAX:
                    raise NotElf("damaged ELF file")
                interpreter = os.fsdecode(_at(fd, size, offset).partition(b"\0")[0])
        try:
            sections = _table(fd, shoff, shentsize, shnum, section)
            go = _is_go(fd, sections, shstrndx)
        except NotElf:
            go = False  # sections are not needed for running; a stripped or packed file may have none
        return Elf(64 if wide else 32, machine, ident[5] == 1, interpreter, dynamic, go)
    finally:
        os.close(fd)
