"""The file that run-plan writes: what can be wrong with it is found before the first step, and no picture is lost."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

from partitioner.errors import UsageError, reason_of
from partitioner.writable import check_writable, kept_elsewhere

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
VIDEO_SUFFIXES = (".gif", ".mp4")
TRIED_PIXELS = 16  # of a side of what is written to try an encoder


def check_output(path: Path, force: bool) -> None:
    """Refuse a file that could not be written after all steps. force: whether it may be overwritten.

    Raises:
        UsageError: its suffix is none of an image or video, there is no place for it, or nothing here can write its
            format, which is tried.

    >>> check_output(Path("picture.txt"), force=False)
    Traceback (most recent call last):
    partitioner.errors.UsageError: --output picture.txt: expected one of .png, .jpg, .jpeg, .webp, .gif, .mp4
    """
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
        raise UsageError(f"--output {path}: expected one of {', '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)}")
    check_writable(path, "--output", force)
    from PIL import Image

    frames = [Image.new("RGB", (TRIED_PIXELS, TRIED_PIXELS), color) for color in ("black", "white")]
    with tempfile.TemporaryDirectory(prefix="run-plan-") as folder:
        try:
            _save(frames, Path(folder, f"tried{suffix}"))
        except Exception as error:  # whatever an encoder raises
            needs = "pip install imageio imageio-ffmpeg, or take .gif" if suffix == ".mp4" else "take .png"
            # what a library says of a package that is missing is several lines, about others than these
            why = "" if isinstance(error, ImportError) else f" ({reason_of(error)})"
            raise UsageError(f"--output {path}: nothing here writes {suffix}{why}; {needs}") from error


def write_media(media: list[Any], path: Path) -> None:
    """Write images or frames to a file, whole or not at all: as a video where its suffix is one's, else the first one.

    Args:
        media: PIL images.
        path: what is there is replaced.

    Raises:
        UsageError: it cannot be written; then what was made is kept in a temporary file, which the message names.
    """
    beside = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}{path.suffix}")
    try:
        try:
            _save(media, beside)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except Exception as error:  # whatever an encoder raises; the steps must not have been in vain
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {reason_of(error)}"
        raise UsageError(f"{path} cannot be written ({reason}); {_kept(media, path.suffix)}") from error


def written(media: list[Any], path: Path) -> str:
    """What write_media has written, as a sentence.

    >>> written([0, 1, 2], Path("a.png"))
    'wrote a.png, the first of 3 images; .gif and .mp4 hold all'
    """
    if len(media) == 1 or path.suffix.lower() in VIDEO_SUFFIXES:
        return f"wrote {path}"
    return f"wrote {path}, the first of {len(media)} images; {' and '.join(VIDEO_SUFFIXES)} hold all"


def _save(media: list[Any], path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix == ".gif":
        media[0].save(path, save_all=True, append_images=media[1:], duration=125, loop=0)
    elif suffix == ".mp4":
        from diffusers.utils import export_to_video

        export_to_video(media, str(path), fps=8)
    elif suffix in (".jpg", ".jpeg"):
        media[0].convert("RGB").save(path)  # it knows no transparency
    else:
        media[0].save(path)


def _kept(media: list[Any], suffix: str) -> str:
    """Where the result is now, as the end of a sentence: a file in its format, else one in a format that needs none."""
    for other in dict.fromkeys((suffix, ".gif" if len(media) > 1 else ".png")):
        name = kept_elsewhere("run-plan", other, lambda path: _save(media, path))
        if name is not None:
            return f"the result is in {name}"
    return "nor can a temporary file, so that the result is lost"
