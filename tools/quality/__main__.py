"""quality: what a plan costs in quality, against the sequential output of the same seeds and against fewer steps.

    python -m tools.quality --denoiser unet --json
    python -m tools.quality --pipeline FOLDER --prompt "a lighthouse at dusk" --scheduler dpmpp --steps 25

Runs the engine's own code in one process (emulation, which equals the ranks bit for bit). Every row of an engine has a
row of the baseline beside it: fewer sequential steps in the same time. Speed-ups are simulated: from the plan's
predicted times of a step and of an exact step, with the warm-up counted.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence

from partitioner.errors import PartitionerError, UsageError
from profiles.json_files import JsonFileError
from tools.quality.command import parser, run
from tools.quality.table import heading, row_line


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code (0 done, 2 usage)."""
    options = parser().parse_args(argv)
    options.command = "python -m tools.quality " + shlex.join(sys.argv[1:] if argv is None else argv)
    try:
        document = run(options)
    except PartitionerError as error:
        print(f"tools.quality: {error}", file=sys.stderr)
        return error.exit_code
    except JsonFileError as error:
        print(f"tools.quality: {error}", file=sys.stderr)
        return UsageError.exit_code
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        print("\n".join([heading(), *map(row_line, document["rows"])]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
