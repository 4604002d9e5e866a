"""glibc236.py FILE...: makes x86-64 ELF files that were built against glibc 2.38 load on Debian 12's glibc 2.36.

gcc 14 turns calls of `strtol` and the like into `__isoc23_strtol`, whose version is GLIBC_2.38. The two differ in
reading "0b1" only. Where nothing else of such a file is newer than 2.36, each of those undefined symbols is given the
end of its own name ("strtol") and the version GLIBC_2.2.5, in place: the file keeps its size and layout. Anything else
newer is an error. The structures are those of elf(5).
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

PREFIX = "__isoc23_"
OLD = "GLIBC_2.2.5"
NEWEST = 36


class Elf:
    """The bytes of a file, and its sections by name: (offset, size, index of the string section)."""

    def __init__(self, data: bytearray) -> None:
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError("no 64-bit little-endian ELF file")
        self.data = data
        (table,) = struct.unpack_from("<Q", data, 0x28)
        size, count, names = struct.unpack_from("<HHH", data, 0x3A)
        headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + size * number) for number in range(count)]
        names_at = headers[names][4]
        self.sections = {self.text(names_at + header[0]): (header[4], header[5]) for header in headers}

    def text(self, offset: int) -> str:
        return self.data[offset : self.data.index(0, offset)].decode()


def retarget(data: bytearray) -> list[str]:
    """Change the file's bytes; gives the symbols that were redirected.

    Raises:
        ValueError: the file needs something else that glibc 2.36 does not have.
    """
    elf = Elf(data)
    symbols_at, symbols_size = elf.sections[".dynsym"]
    strings_at, _ = elf.sections[".dynstr"]
    versions_at, _ = elf.sections[".gnu.version"]
    too_new, old, old_entry = _needed(elf, strings_at)
    if not too_new:
        return []
    if old_entry is None:
        raise ValueError(f"it needs nothing of {OLD}, so that there is no version to give")
    done = []
    for number in range(symbols_size // 24):
        symbol_at = symbols_at + 24 * number
        name_at, _, _, section = struct.unpack_from("<IBBH", data, symbol_at)
        (version,) = struct.unpack_from("<H", data, versions_at + 2 * number)
        if version & 0x7FFF not in too_new:
            continue
        name = elf.text(strings_at + name_at)
        if section != 0 or not name.startswith(PREFIX):
            raise ValueError(f"{name} is newer than glibc 2.{NEWEST} and has no older form")
        struct.pack_into("<I", data, symbol_at, name_at + len(PREFIX))
        struct.pack_into("<H", data, versions_at + 2 * number, old)
        done.append(name)
    for entry_at in too_new.values():
        # The needed version, under the old one's hash and name.
        struct.pack_into("<I", data, entry_at, old_entry[0])
        struct.pack_into("<I", data, entry_at + 8, old_entry[1])
    return done


def _needed(elf: Elf, strings_at: int) -> tuple[dict[int, int], int, tuple[int, int] | None]:
    """Of libc.so.6: versions that are too new, by index, with where they stand; the old one's index, hash and name."""
    too_new: dict[int, int] = {}
    old, old_entry = 0, None
    at, _ = elf.sections[".gnu.version_r"]
    while True:
        _, count, file_name, first, following = struct.unpack_from("<HHIII", elf.data, at)
        entry_at = at + first
        for _ in range(count):
            hashed, _, index, name_at, step = struct.unpack_from("<IHHII", elf.data, entry_at)
            name = elf.text(strings_at + name_at)
            if elf.text(strings_at + file_name) == "libc.so.6":
                if name == OLD:
                    old, old_entry = index, (hashed, name_at)
                minor = name.removeprefix("GLIBC_2.")
                if minor.isdigit() and int(minor) > NEWEST:
                    too_new[index] = entry_at
            entry_at += step
        if not following:
            return too_new, old, old_entry
        at += following


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        data = bytearray(path.read_bytes())
        try:
            done = retarget(data)
        except ValueError as error:
            sys.exit(f"{path}: {error}")
        path.write_bytes(data)
        print(f"{path.name}: {', '.join(done) or 'nothing to do'}")


if __name__ == "__main__":
    main(sys.argv[1:])
