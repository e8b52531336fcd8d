"""What the system says of files that are mapped into this process: which, where, and what of them was written to."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy
import torch

_PAGE = os.sysconf("SC_PAGESIZE")
# of a page, as /proc/PID/pagemap has it: in memory, in swap, still the file's own
_PRESENT, _SWAPPED, _OF_FILE = (numpy.uint64(1 << bit) for bit in (63, 62, 61))


def mapped_files(suffix: str) -> list[Path]:
    """Files whose names end so and that are mapped into this process; none on systems that do not tell."""
    return sorted({Path(name) for _, _, name in _mappings() if name.endswith(suffix)})


def private_mappings() -> list[tuple[int, int]]:
    """First and last address, beyond the last byte, of memory that files are mapped into and that is not shared."""
    return sorted((first, last) for first, last, _ in _mappings())


def is_within(mappings: Sequence[tuple[int, int]], address: int) -> bool:
    """Whether an address lies in one of them. mappings: in their order.

    >>> is_within([(10, 20), (40, 50)], 19), is_within([(10, 20), (40, 50)], 20)
    (True, False)
    """
    index = bisect.bisect_right(mappings, address, key=lambda mapping: mapping[0]) - 1
    return index >= 0 and address < mappings[index][1]


def _mappings() -> Iterator[tuple[int, int, str]]:
    try:
        with open("/proc/self/maps") as lines:
            entries = [line.split(maxsplit=5) for line in lines]
    except OSError:
        return
    for entry in entries:
        if len(entry) == 6 and entry[1].endswith("p") and entry[4] != "0":
            first, _, last = entry[0].partition("-")
            yield int(first, 16), int(last, 16), entry[5].rstrip("\n")


def written_pages(tensors: Mapping[int, torch.Tensor]) -> dict[int, bytes]:
    """Which pages of each tensor are this process's own, because it has written to them; nothing is read for it.

    Args:
        tensors: that lie in files' private mappings, by any number.

    Returns:
        By the same number, a byte for each page: 1 after a write to the tensor, or beside it in the page. Empty where
        the system does not tell.
    """
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pages:
            return {number: _written(pages.fileno(), tensor) for number, tensor in tensors.items()}
    except OSError:
        return {}


def _written(pagemap: int, tensor: torch.Tensor) -> bytes:
    first = tensor.data_ptr() // _PAGE
    count = -(-(tensor.data_ptr() + tensor.nbytes) // _PAGE) - first
    entries = numpy.frombuffer(os.pread(pagemap, 8 * count, 8 * first), dtype=numpy.uint64)
    if len(entries) != count:
        raise OSError("pagemap ends before the memory does")
    own = (entries & (_PRESENT | _SWAPPED) != 0) & (entries & _OF_FILE == 0)
    return bytes(own)
