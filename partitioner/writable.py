"""Files that hold the result of long work: whether they can be written is found out before it, and none is lost."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from partitioner.errors import UsageError

LEAST_BYTES = 1 << 20  # of free disk
ELSEWHERE = ("/var/tmp", "/dev/shm")  # besides the folder of temporary files


def check_writable(path: Path, option: str, force: bool) -> None:
    """Refuse a path at which no file can be written: a file is made in its folder, and taken away again.

    Args:
        path: What is written there replaces what is there, also a link.
        option: That named it.
        force: Whether a file may be overwritten.

    Raises:
        UsageError: Something is there that may not be overwritten, or is no file; or the folder cannot be written to,
            or its disk is full.
    """
    try:
        _check_place(path, option, force)
        handle, name = tempfile.mkstemp(prefix=".", dir=path.parent)
        os.close(handle)
        os.unlink(name)
        free = shutil.disk_usage(path.parent).free
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        shown = str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}…"
        raise UsageError(f"{option} {shown!r} cannot be written: {reason}; choose another file") from error
    if free < LEAST_BYTES:
        raise UsageError(f"the disk of {path.parent} is full ({free} bytes are free); choose another {option}")


def check_apart(files: Mapping[str, Path | None]) -> None:
    """Refuse two options that name the same file to write.

    >>> check_apart({"--output": Path("a.json"), "--trace": Path("./a.json")})
    Traceback (most recent call last):
    partitioner.errors.UsageError: --output and --trace name the same file, a.json; choose another for one of them
    """
    seen: dict[str, str] = {}
    for option, path in files.items():
        if path is None:
            continue
        place = os.path.join(os.path.realpath(path.parent), path.name)
        if place in seen:
            raise UsageError(f"{seen[place]} and {option} name the same file, {path}; choose another for one of them")
        seen[place] = option


def kept_elsewhere(program: str, suffix: str, write: Callable[[Path], object]) -> Path | None:
    """Write what could not be written where it was to go to a temporary file; None if that cannot be, either.

    Args:
        program: What the file's name begins with.
        suffix: What it ends with.
        write: Writes it.
    """
    for folder in (None, *ELSEWHERE):
        try:
            handle, name = tempfile.mkstemp(prefix=f"{program}-", suffix=suffix, dir=folder)
            os.close(handle)
            try:
                write(Path(name))
            except BaseException:
                os.unlink(name)
                raise
        except Exception:  # whatever writes it raises; the next folder may have room
            continue
        return Path(name)
    return None


def _check_place(path: Path, option: str, force: bool) -> None:
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder; name a file in it")
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise UsageError(f"there is no folder {path.parent}; make it or choose another {option}") from None
        return
    if not stat.S_ISREG(kind) and not stat.S_ISLNK(kind):
        raise UsageError(f"{option} {path} is no file but a device, a pipe or a socket; name a file")
    if not force:
        raise UsageError(f"{path} exists already; choose another {option}, or overwrite it with --force")
