"""A copy of a CUDA extension that keeps, of its fat binaries, only what an H100 runs: sm_90, or PTX where none is.

``python tests/bench/vllm_pack/keep_sm90.py SOURCE.so TARGET.so [--largest-ptx BYTES]``. The file keeps its size;
what goes becomes zeros, of which xz makes nothing. Each container's length is set anew and none is left empty, so
that the driver reads it as before. Needs ``readelf``.
"""

from __future__ import annotations

import argparse
import re
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# A container is: magic (u32), version (u16), header size (u16), size of what follows (u64).
# An entry in it: kind (u16), version (u16), header size (u32), size of what follows (u64); the architecture at 28.
MAGIC = b"\x50\xed\x55\xba"
PTX, ELF = 1, 2
KEPT, STAND_IN = 90, 75


@dataclass(frozen=True, slots=True)
class Entry:
    """Code for one architecture, with its header."""

    kind: int
    architecture: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Container:
    """Entries of one translation unit; ``start`` is where they begin in the file."""

    header: int
    start: int
    entries: tuple[Entry, ...]


def fat_binaries(path: Path) -> tuple[int, int]:
    """Where the section of fat binaries begins and ends in the file."""
    table = subprocess.run(["readelf", "-SW", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\.nv_fatbin\s+\w+\s+\w+\s+(\w+)\s+(\w+)", table)
    assert found is not None, f"{path} has no device code"
    start = int(found[1], 16)
    return start, start + int(found[2], 16)


def containers(data: bytes, start: int, end: int) -> Iterator[Container]:
    while start < end:
        if data[start : start + 4] != MAGIC:
            start += 8
            continue
        _, _, header, size = struct.unpack_from("<IHHQ", data, start)
        entries = tuple(entries_of(data, start + header, start + header + size))
        yield Container(start, start + header, entries)
        start += header + size


def entries_of(data: bytes, start: int, end: int) -> Iterator[Entry]:
    while start < end:
        kind, _, header, size = struct.unpack_from("<HHIQ", data, start)
        (architecture,) = struct.unpack_from("<I", data, start + 28)
        yield Entry(kind, architecture, bytes(data[start : start + header + size]))
        start += header + size
    assert start == end


def kept(container: Container, largest_ptx: int, stand_in: Entry | None) -> list[Entry]:
    """What stays of a container; where nothing would, the smallest entry that an H100 does not look at."""
    own = [each for each in container.entries if (each.kind, each.architecture) == (ELF, KEPT)]
    ptx = [each for each in container.entries if each.kind == PTX and len(each.data) <= largest_ptx]
    if own or ptx:
        return own or ptx
    assert stand_in is not None
    return [stand_in]


def prune(source: Path, target: Path, largest_ptx: int) -> None:
    original = source.read_bytes()
    data = bytearray(original)
    found = list(containers(original, *fat_binaries(source)))
    others = [each for one in found for each in one.entries if (each.kind, each.architecture) == (ELF, STAND_IN)]
    stand_in = min(others, key=lambda each: len(each.data), default=None)
    removed = 0
    for one in found:
        size = sum(len(each.data) for each in one.entries)
        body = b"".join(each.data for each in kept(one, largest_ptx, stand_in))
        assert len(body) <= size
        struct.pack_into("<Q", data, one.header + 8, len(body))
        data[one.start : one.start + size] = body.ljust(size, b"\0")
        removed += size - len(body)
    target.write_bytes(data)
    print(f"{target}: {len(found)} containers, {removed / 1e6:.1f} MB removed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--largest-ptx", type=int, default=1 << 62, metavar="BYTES")
    arguments = parser.parse_args()
    prune(arguments.source, arguments.target, arguments.largest_ptx)


if __name__ == "__main__":
    main()
