"""Runs everything that needs a GPU, in order of worth, within a time limit; all results are in one file.

    python -m tools.gpu_suite --pack gpu-pack                                     here: makes what has to travel
    python -m tools.gpu_suite --packed gpu-pack --output gpu.tar.gz --seconds 480      there, beside a copy of the tree

One GPU is enough, and nothing needs to be installed there but torch. The file is written after every part, and the same
command given again resumes from it, also on another machine: a part whose document is there is not run again, and one
that failed is tried once more after all others. Each part is a process of its own with a limit of its own; several run
at once, and what they time they time one after the other. --device cpu --denoiser small tries the suite without a GPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from tools.command import command
from tools.gpu_suite.mps import mps
from tools.gpu_suite.packed import pack, unpack
from tools.gpu_suite.parts import DENOISERS, TINY, SuitePart, plan_parts
from tools.gpu_suite.processes import CommandProcess
from tools.gpu_suite.results import keep_results, unpack_results
from tools.gpu_suite.suite import GpuSuite

JOBS = 3  # on a GPU; most of them wait, or compute on the host


@command("tools.gpu_suite")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0 when every part has its document, 1 if not, 2 for a wrong option."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_suite", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, metavar="FILE.tar.gz", help="the results; resumes from them")
    parser.add_argument("--seconds", type=float, default=480, metavar="S", help="time for this command (default: 480)")
    parser.add_argument("--device", default="cuda:0", help="cuda:0 (default) or cpu")
    parser.add_argument("--denoiser", action="append", metavar="NAME", help=f"default: {', '.join(DENOISERS)}")
    parser.add_argument("--part", action="append", metavar="NAME", help="only these, such as 'profile-*'")
    parser.add_argument("--skip", action="append", metavar="NAME", help="not these")
    parser.add_argument("--jobs", type=int, metavar="N", help=f"parts at once (default: {JOBS}, on a CPU 1)")
    parser.add_argument("--list", action="store_true", help="only print the state of every part")
    parser.add_argument("--packed", type=Path, metavar="FOLDER", help="what --pack has made")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="make what has to travel, and run nothing")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="for --pack: wheels; default: downloads them")
    options = parser.parse_args(arguments)
    names = options.denoiser or DENOISERS
    if options.pack:
        print(pack(options.pack, options.wheels, [*names, *(TINY[name] for name in names if name in TINY)]))
        return 0
    if options.output is None:
        parser.error("--output is needed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # parts end with this command
    with tempfile.TemporaryDirectory(prefix="gpu-suite-") as place:
        folder = Path(place)
        try:
            parts = _chosen(plan_parts(names, options.device, folder), options.part or ["*"], options.skip or [])
        except ValueError as error:
            parser.error(str(error))
        if options.output.exists():
            unpack_results(options.output, folder)
        return _run(parts, folder, options)


def _run(parts: Sequence[SuitePart], folder: Path, options: argparse.Namespace) -> int:
    environment = {
        # as many hardware queues as there may be streams: with fewer, streams that share one wait for each other
        "CUDA_DEVICE_MAX_CONNECTIONS": "32",
        "OMP_NUM_THREADS": "2",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled-code"),
        "TORCHINDUCTOR_COMPILE_THREADS": "6",
        "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    if options.packed:
        packages = unpack(options.packed, folder)
        environment["PYTHONPATH"] = f"{packages}{os.pathsep}{environment['PYTHONPATH']}"

    def start(part: SuitePart, turn: int, log: Path) -> CommandProcess:
        return CommandProcess([*part.command, "--turn", str(turn)], log, environment)

    begun = time.monotonic()
    suite = GpuSuite(
        parts,
        folder,
        start,
        say=lambda text: print(f"[{time.monotonic() - begun:3.0f} s] {text}", file=sys.stderr, flush=True),
        keep=lambda: keep_results(folder, options.output),
        jobs=options.jobs or (1 if options.device == "cpu" else JOBS),
    )
    if not options.list:
        with mps(folder):
            suite.run_for(options.seconds)
    print(suite.table())
    return 0 if all(suite.is_done(part) for part in parts) else 1


def _chosen(parts: Sequence[SuitePart], wanted: Sequence[str], unwanted: Sequence[str]) -> list[SuitePart]:
    for pattern in (*wanted, *unwanted):
        if not any(fnmatchcase(part.name, pattern) for part in parts):
            raise ValueError(f"no part {pattern}; there are {', '.join(part.name for part in parts)}")

    def matches(part: SuitePart, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(part.name, pattern) for pattern in patterns)

    return [part for part in parts if matches(part, wanted) and not matches(part, unwanted)]


if __name__ == "__main__":
    sys.exit(main())
