"""The suite's results as one file: packed after every part, and unpacked to go on from them."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

MAX_BYTES = 15 << 20  # of the file
LOG_BYTES = 200_000  # of a log, whose end counts
KINDS = (".json", ".log", ".png", ".xml", ".gz")  # what results consist of, the most valuable first


def keep_results(folder: Path, archive: Path) -> None:
    """Write all results in the folder to a .tar.gz file; what does not fit any more is named in it."""
    room = MAX_BYTES
    left_out = []
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path in sorted(_results(folder), key=lambda path: (KINDS.index(path.suffix), path.stat().st_size)):
            content = path.read_bytes()
            content = content[-LOG_BYTES:] if path.suffix == ".log" else content
            room -= len(gzip.compress(content, 1)) + 512
            if room < 0:
                left_out.append(path.name)
            else:
                _add(tar, path.name, content)
        if left_out:
            _add(tar, "left-out.txt", "\n".join(left_out).encode())
    beside = archive.with_name(archive.name + ".new")
    beside.write_bytes(buffer.getvalue())
    os.replace(beside, archive)


def unpack_results(archive: Path, folder: Path) -> None:
    """Put the results of an archive into the folder."""
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member)
            name = Path(member.name)
            if content is not None and name.name == member.name and _is_result(name):
                (folder / name).write_bytes(content.read())


def _results(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file() and _is_result(path)]


def _is_result(path: Path) -> bool:
    """Whether a file is data; traces are pickles, which could be code."""
    return path.suffix in KINDS and not path.name.endswith(".pickle.gz")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
