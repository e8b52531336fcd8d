"""Runs everything that needs a GPU, in order of worth: tests, profiles (ms), times of components (ms), concurrency.

    python -m tools.gpu_suite --output build/gpu --minutes 9.5

One GPU is enough. Each part runs in a process of its own, with a time limit of its own, and leaves a JSON document and
a log in the folder. The same command given again resumes: a part whose document is there is not run again, and one that
failed is tried once more after all others. --denoiser small --device cpu tries the suite without a GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.gpu_suite.parts import DENOISERS, plan_parts
from tools.gpu_suite.suite import GpuSuite, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0 when every part has its document, 1 if not, 2 for a wrong option."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_suite", description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="documents, profiles and logs")
    parser.add_argument("--minutes", type=float, default=9.5, metavar="M", help="time for this command (default: 9.5)")
    parser.add_argument("--device", default="cuda:0", help="cuda:0 (default) or cpu")
    parser.add_argument("--denoiser", action="append", metavar="NAME", help=f"default: {', '.join(DENOISERS)}")
    parser.add_argument("--part", action="append", metavar="NAME", help="only these, such as profile-sd15")
    parser.add_argument("--list", action="store_true", help="only print the state of every part")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    parts = plan_parts(options.denoiser or DENOISERS, options.device, options.output)
    if unknown := set(options.part or ()) - {part.name for part in parts}:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(part.name for part in parts)}")
    parts = [part for part in parts if not options.part or part.name in options.part]
    suite = GpuSuite(parts, options.output, run_command, lambda text: print(text, file=sys.stderr, flush=True))
    if not options.list:
        suite.run_for(options.minutes * 60)
    print(suite.table())
    return 0 if all(suite.is_done(part) for part in parts) else 1


if __name__ == "__main__":
    sys.exit(main())
