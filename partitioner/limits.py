"""Limits: how large the numbers that a user gives may be, and which texts, as options of commands and as arguments.

What is beyond is a slip of the pen, and ends in an allocation that fails or in no end at all.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from types import NoneType
from typing import Any

from partitioner.errors import UsageError

MOST_STEPS = 10_000  # of a generation, exact ones included
MOST_PIXELS = 2**16  # of a side
MOST_FRAMES = 2**16
MOST_BATCH = 2**16
MOST_BRANCHES = 1024
MOST_PERIOD = 64
MOST_SCALE = 1000.0  # of guidance
MOST_GB = 1e9  # of a device's memory
MOST_THREADS = 1024  # of a rank; far more end the process
LEAST_SECONDS, MOST_SECONDS = 1e-6, 1e7  # of a deadline; what waits cannot wait for much more
SEEDS = -(2**63), 2**64 - 1
DTYPES = ("float16", "bfloat16", "float32")  # that plans are made for
_SHOWN = 40  # characters of what came
_WHOLE = re.compile(r"[+-]?[0-9]+")


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """The argparse type of an option that is a whole number.

    >>> whole(1, 64)("65")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: expected a whole number from 1 to 64, got '65'
    """

    def parsed(text: str) -> int:
        # int() also takes the digits of other scripts and underscores, and refuses thousands of digits in its own words
        digits = text.strip()
        number = int(digits) if _WHOLE.fullmatch(digits) and len(digits) < 100 else None
        if number is None or not _is_whole(number, least, most):
            raise argparse.ArgumentTypeError(f"expected {_range('a whole number', least, most)}, got {_shown(text)}")
        return number

    return parsed


def text(given: str) -> str:
    """The argparse type of an option that is a text, which has passed the shell as bytes.

    >>> text("a \\udcff")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: expected a text in the encoding of the terminal, usually UTF-8, got 'a \\udcff'
    """
    try:
        given.encode()
    except UnicodeEncodeError:
        expected = "a text in the encoding of the terminal, usually UTF-8"
        raise argparse.ArgumentTypeError(f"expected {expected}, got {_shown(given)}") from None
    return given


def real(least: float, most: float) -> Callable[[str], float]:
    """The argparse type of an option that is a number.

    >>> real(0, 1000)("nan")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: expected a number from 0 to 1000, got 'nan'
    """

    def parsed(text: str) -> float:
        try:
            number = float(text) if text.isascii() and "_" not in text else math.nan
        except ValueError:
            number = math.nan
        if not _is_real(number, least, most):
            raise argparse.ArgumentTypeError(f"expected {_range('a number', least, most)}, got {_shown(text)}")
        return number

    return parsed


def check_whole(
    name: str, value: Any, least: int, most: int | None = None, error: type[Exception] = UsageError
) -> None:
    """Refuse what is no whole number from ``least`` to ``most``. error: what is raised; name: what it calls the value.

    >>> check_whole("period", 2.0, 1, 64)
    Traceback (most recent call last):
    partitioner.errors.UsageError: period is 2.0; expected a whole number from 1 to 64
    """
    if not _is_whole(value, least, most):
        raise error(f"{name} is {_shown(value)}; expected {_range('a whole number', least, most)}")


def check_real(name: str, value: Any, least: float, most: float, error: type[Exception] = UsageError) -> None:
    """Refuse what is no number from ``least`` to ``most``; as check_whole."""
    if not _is_real(value, least, most):
        raise error(f"{name} is {_shown(value)}; expected {_range('a number', least, most)}")


def check_one_of(name: str, value: Any, known: Sequence[Any], error: type[Exception] = UsageError) -> None:
    """Refuse what is none of the values that are known; as check_whole.

    >>> check_one_of("mode", "sync", (None, "lookahead", "async"))
    Traceback (most recent call last):
    partitioner.errors.UsageError: mode is 'sync'; expected one of None, 'lookahead', 'async'
    """
    if not isinstance(value, (str, NoneType)) or value not in known:
        raise error(f"{name} is {_shown(value)}; expected one of {', '.join(map(repr, known))}")


def _is_whole(value: Any, least: int, most: int | None) -> bool:
    return _is_a(Integral, value) and least <= value and (most is None or value <= most)


def _is_real(value: Any, least: float, most: float) -> bool:
    return _is_a(Real, value) and least <= value <= most


def _is_a(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _range(what: str, least: float, most: float | None) -> str:
    return f"{what} from {least:g} on" if most is None else f"{what} from {_text(least)} to {_text(most)}"


def _text(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of too many digits for Python to write
        text = "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
