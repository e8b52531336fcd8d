"""library_call: what diffusers or transformers raise on a user's files, in one sentence; own defects stay apart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

from partitioner.errors import UsageError
from profiles.import_guard import PACKAGES

_HOME = Path(__file__).parents[1]
_OWN_FILES = tuple(f"{_HOME / package}{os.sep}" for package in PACKAGES)
_SAY_ENOUGH = (OSError, ValueError, ImportError)  # whose messages are written for readers; a KeyError's is a key
_MOST_SHOWN = 300  # characters


@contextmanager
def library_call(what: str, advice: str = "") -> Iterator[None]:
    """Inside it libraries work on files of a user, and may raise anything; it becomes a UsageError with its cause.

    An error of this project passes as it is, and so does whatever is raised in this project's own lines: a defect.

    Args:
        what: What was wanted and did not come about, "the unet of ./sd cannot be built".
        advice: What to do, to stand after the cause.

    Raises:
        UsageError: A library raised; the error is its ``__cause__``.

    >>> import json
    >>> with library_call("there is no index"):
    ...     json.loads("{")
    Traceback (most recent call last):
        ...
    partitioner.errors.UsageError: there is no index: Expecting property name enclosed in double quotes: line 1 ...
    """
    try:
        yield
    except BaseException as error:
        if _is_own(error) or not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise  # Rust's panics, of tokenizers, are no Exceptions
        raise UsageError(f"{what}: {cause_of(error)}{advice}") from error


def cause_of(error: BaseException) -> str:
    """An error as the cause in a sentence: its message, and its class where the message alone may say too little.

    >>> cause_of(KeyError("hidden_size")), cause_of(ValueError("2 is odd."))
    ("KeyError: 'hidden_size'", '2 is odd')
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    said = lines[0] if lines else ""
    for line in lines[1:]:
        if not said.endswith((":", ",")) and len(said) > 20:  # else it says nothing by itself
            break
        said = f"{said} {line}"
    said = said.rstrip(".")
    if len(said) > _MOST_SHOWN:
        said = f"{said[:_MOST_SHOWN]}…"
    if isinstance(error, _SAY_ENOUGH) and said:
        return said
    name = type(error).__name__
    return f"{name}: {said}" if said else name


def _is_own(error: BaseException) -> bool:
    """Whether an error is one of this project's, or was raised in one of its lines."""
    if type(error).__module__.partition(".")[0] in PACKAGES:
        return True
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    innermost = frames[-1].f_code.co_filename if frames else ""
    return innermost.startswith(_OWN_FILES) and len(frames) > 2  # the first two are of the block
