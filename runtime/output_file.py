"""The file that run-plan writes: what can be wrong with it is found before the first step, and no picture is lost."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

from partitioner.errors import UsageError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
VIDEO_SUFFIXES = (".gif", ".mp4")
VIDEO_PACKAGES = ("imageio", "cv2")  # one of which diffusers writes .mp4 with
LEAST_BYTES = 1 << 20  # of free disk


def check_output(path: Path, force: bool) -> None:
    """Refuse a file that could not be written after all steps. force: whether it may be overwritten.

    Raises:
        UsageError: its suffix is none of an image or video, or there is no folder that can be written to.

    >>> check_output(Path("picture.txt"), force=False)
    Traceback (most recent call last):
    partitioner.errors.UsageError: --output picture.txt: expected one of .png, .jpg, .jpeg, .webp, .gif, .mp4
    """
    if path.suffix.lower() not in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
        raise UsageError(f"--output {path}: expected one of {', '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)}")
    check_writable(path, "--output", force)
    if path.suffix.lower() == ".mp4" and not any(map(importlib.util.find_spec, VIDEO_PACKAGES)):
        raise UsageError(
            f"--output {path}: .mp4 needs another package: pip install imageio imageio-ffmpeg; .gif needs none"
        )


def check_writable(path: Path, option: str, force: bool) -> None:
    """Refuse a path at which no file can be written. option: that named it.

    Raises:
        UsageError: something is there that may not be overwritten, or the folder cannot be written to, or is full.
    """
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder; name a file in it")
    if os.path.lexists(path) and not force:
        raise UsageError(f"{path} exists; choose another {option} or add --force")
    folder = path.parent
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist; make it or choose another {option}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"the folder {folder} cannot be written to; choose another {option}")
    free = shutil.disk_usage(folder).free
    if free < LEAST_BYTES:
        raise UsageError(f"the disk of {folder} is full ({free} bytes are free); choose another {option}")


def write_media(media: list[Any], path: Path) -> None:
    """Write images or frames to a file, whole or not at all: as a video where its suffix is one's, else the first one.

    Args:
        media: PIL images.
        path: what is there is replaced.

    Raises:
        UsageError: it cannot be written; then what was made is kept in a temporary file, which the message names.
    """
    beside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        try:
            _save(media, beside)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except Exception as error:  # whatever an encoder raises; the steps must not have been in vain
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UsageError(f"{path} cannot be written ({reason}); {_kept(media, path.suffix)}") from error


def _save(media: list[Any], path: Path) -> None:
    if path.suffix.lower() == ".gif":
        media[0].save(path, save_all=True, append_images=media[1:], duration=125, loop=0)
    elif path.suffix.lower() == ".mp4":
        from diffusers.utils import export_to_video

        export_to_video(media, str(path), fps=8)
    else:
        media[0].save(path)


def _kept(media: list[Any], suffix: str) -> str:
    """Where the result is now, as the end of a sentence: a file in its format, else one in a format that needs none."""
    for other in dict.fromkeys((suffix, ".gif" if len(media) > 1 else ".png")):
        handle, name = tempfile.mkstemp(prefix="run-plan-", suffix=other)
        os.close(handle)
        try:
            _save(media, Path(name))
        except Exception:  # the next format, or nothing is left to try
            Path(name).unlink(missing_ok=True)
        else:
            return f"the result is in {name}"
    return "nor can a temporary file, so that the result is lost"
