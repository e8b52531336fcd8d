"""table_text, size_text: rows of text in aligned columns, and bytes in words, for every command that prints a table."""

from __future__ import annotations

import io
import sys
from collections.abc import Collection, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

ENOUGH = 10_000  # columns of text: a row is one line, which the terminal may wrap


def table_text(headers: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = ()) -> str:
    """A header line and one line per row; headings are bold on a terminal, and all is plain text elsewhere.

    Args:
        headers: of each column.
        rows: cells as text, as many in each row as there are headers.
        left: numbers of the columns that are aligned to the left; the others are aligned to the right.

    Returns:
        The lines, without a newline at the end.

    Raises:
        ValueError: a row has more or fewer cells than there are headers.

    >>> print(table_text(["device", "ms"], [["h200", "1.5"], ["a100", "12.0"]], left={0}))
    device    ms
    h200     1.5
    a100    12.0
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for number, header in enumerate(headers):
        table.add_column(Text(header), justify="left" if number in left else "right", no_wrap=True)
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"a row has {len(row)} cells; expected {len(headers)}, one under each of {list(headers)}")
        table.add_row(*map(Text, row))
    written = io.StringIO()
    console = Console(file=written, width=ENOUGH, force_terminal=sys.stdout.isatty(), highlight=False)
    console.print(table, crop=False, soft_wrap=True)
    return "\n".join(line.rstrip() for line in written.getvalue().rstrip("\n").split("\n"))


def size_text(size_bytes: float) -> str:
    """Bytes in decimal units.

    >>> size_text(8_340_000), size_text(12)
    ('8.3 MB', '12 B')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes:.0f} B"
