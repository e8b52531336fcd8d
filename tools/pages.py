"""What the tools that make pages share: what was run where, quiet libraries, messages as text."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

_PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "torchao", "bitsandbytes")


def versions(packages: Sequence[str] = _PACKAGES) -> str:
    """The versions of python and of packages, as text."""
    from importlib.metadata import PackageNotFoundError, version

    found = [f"python {platform.python_version()}"]
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def environment(module: str, command: Sequence[str]) -> dict[str, str]:
    """The date, the versions and the command, for a page.

    Args:
        module: The tool ("tools.features").
        command: Its arguments.
    """
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread each",
        "command": f"`{shlex.join(['python', '-m', module, *command])}`",
    }


@cache
def commit() -> str:
    """The commit that is checked out, in short, with "+" where sources were changed since; empty if unknown."""
    git = ("git", "-C", str(Path(__file__).parent))
    try:
        number, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True, timeout=60).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", "*.py"))
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return number[:9] + ("+" if changed else "")


def give_page(page: str, file: Path | None) -> None:
    """Write a page to a file, or print it where there is none."""
    if file:
        file.write_text(page, encoding="utf-8")
    else:
        print(page)


def be_quiet() -> None:
    """No progress bars and no advice from libraries."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def escaped(text: str) -> str:
    """A message as text of a page: no markup, no lines of its own.

    >>> escaped("no `unet`\\nat all")
    "`no 'unet' at all`"
    """
    return "`" + " ".join(text.split()).replace("`", "'") + "`"
