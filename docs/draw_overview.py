"""Draws docs/overview.svg, the picture of the whole: `python docs/draw_overview.py`. Standard library only.

The picture is a table: boxes stand in rows and columns, arrows join them. A test draws it again and compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

PICTURE = Path(__file__).with_name("overview.svg")

WIDTH, HEIGHT = 980, 480
COLUMN, BOX = 158, 126  # pixels from one box to the next, and width of a box
FILLS = {"compile": "#e8eefc", "file": "#fff4d6", "run": "#e4f5e9", "given": "#f1f1f1"}


@dataclass(frozen=True)
class Box:
    """One box: its lines of text, the first in bold, and where it stands (left, top, width, height; pixels)."""

    kind: str
    lines: tuple[str, ...]
    left: int
    top: int
    width: int = BOX
    height: int = 62


def _at(column: int) -> int:
    return 24 + COLUMN * column


BOXES = (
    Box("given", ("model", "name, folder, module"), _at(0), 62),
    Box("compile", ("trace", "graph of operators"), _at(1), 62),
    Box("compile", ("cost", "ms of every operator"), _at(2), 62),
    Box("compile", ("split", "balanced components"), _at(3), 62),
    Box("compile", ("choose", "speed against quality"), _at(4), 62),
    Box("file", ("plan file", "JSON, pure data"), _at(5), 62),
    Box("file", ("devices.json", "data sheets, or a", "measured profile"), _at(2), 160, height=70),
    Box("file", ("quality.json", "PSNR measured with", "real samplers"), _at(4), 160, height=70),
    Box("given", ("your pipeline", "diffusers, unchanged"), _at(0), 330),
    Box("run", ("driver", "predicts latents,", "joins outputs"), _at(1), 326, height=70),
    Box("run", ("rank 0: last component", "in the driver's process"), _at(2) + 20, 284, width=190, height=46),
    Box("run", ("rank 1", "its component's weights only"), _at(2) + 20, 350, width=190, height=46),
    Box("run", ("rank 2 …", "one process or stream each"), _at(2) + 20, 416, width=190, height=46),
    Box("run", ("engine", "starts, watches and", "ends the ranks"), _at(5), 326, height=70),
)  # fmt: skip

# (x, y) of the points of each arrow, the head at the last
ARROWS = (
    *(((_at(c) + BOX, 93), (_at(c + 1), 93)) for c in range(5)),
    ((_at(2) + BOX // 2, 160), (_at(2) + BOX // 2, 124)),
    ((_at(4) + BOX // 2, 160), (_at(4) + BOX // 2, 124)),
    ((_at(5) + BOX // 2, 124), (_at(5) + BOX // 2, 326)),
    ((_at(0) + BOX, 352), (_at(1), 352)),
    ((_at(1), 374), (_at(0) + BOX, 374)),
    *(((_at(1) + BOX, 361), (_at(2) + 20, y)) for y in (307, 373, 439)),
    *(((_at(2) + x, y), (_at(2) + x, y - 20)) for x in (60, 115, 170) for y in (350, 416)),
    *(((_at(5), 361), (_at(2) + 210, y)) for y in (307, 373, 439)),
)
NOTES = (
    ("compile time (partitioner): the model is not run; no weights and no GPU are needed", 24, 36, True),
    ("run time (runtime): one call of the denoiser at a time", 24, 270, True),
    ("latents in, noise out", _at(0) + BOX - 4, 414, False),
    ("boundary tensors from rank to rank", _at(2) + 224, 454, False),
)


def overview() -> str:
    """The picture as SVG text."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="From a model to a plan file, and from the plan file to the engine that runs it" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#1b1f24">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#57606a"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
        *_arrows(),
        *_boxes(),
        *_notes(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _arrows() -> Iterator[str]:
    for points in ARROWS:
        path = " L".join(f"{x} {y}" for x, y in points)
        yield f'<path d="M{path}" fill="none" stroke="#57606a" stroke-width="1.3" marker-end="url(#head)"/>'


def _boxes() -> Iterator[str]:
    for box in BOXES:
        yield (
            f'<rect x="{box.left}" y="{box.top}" width="{box.width}" height="{box.height}" rx="6" '
            f'fill="{FILLS[box.kind]}" stroke="#8c959f"/>'
        )
        middle = box.left + box.width // 2
        first = box.top + box.height // 2 - 8 * (len(box.lines) - 1) + 4
        for number, line in enumerate(box.lines):
            style = ' font-weight="bold" font-size="13"' if number == 0 else ' font-size="11"'
            yield f'<text x="{middle}" y="{first + 16 * number}" text-anchor="middle"{style}>{escape(line)}</text>'


def _notes() -> Iterator[str]:
    for text, x, y, bold in NOTES:
        style = ' font-weight="bold"' if bold else ""
        yield f'<text x="{x}" y="{y}" fill="#57606a"{style}>{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(overview(), encoding="utf-8")
