"""bounded_memory: work on files from elsewhere cannot take all of a machine's memory."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from partitioner.errors import UsageError
from runtime.errors import bytes_wanted


@contextmanager
def bounded_memory(what: str, more_bytes: int) -> Iterator[None]:
    """Inside it this process gets only so much more memory than it has; what would need more is refused before.

    Memory of its own is meant (``RLIMIT_DATA``), not files that are mapped. For commands: the limit is the process's.

    Args:
        what: What is worked on, for the message.
        more_bytes: Than the process has now.

    Raises:
        UsageError: An allocation failed inside; the error is its ``__cause__``.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = _data_bytes() + more_bytes
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([most, *limits]), hard))
    try:
        yield
    except Exception as error:
        for raised in (error, error.__cause__):
            if isinstance(raised, MemoryError) or (raised is not None and bytes_wanted(raised) is not None):
                raise UsageError(
                    f"{what} asks for more than {more_bytes / 1e9:.1f} GB of memory, and its files have far less; its "
                    "numbers of layers and widths are not those of its weights"
                ) from raised
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int:
    """How much memory of its own, touched or not, this process has."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
