"""Plans every built-in name at full size: seconds, CPU seconds, and memory (GB).

    python -m tools.measure models [--names flux2 wan] [--devices 4] [--again] [--json]

Runs ``partition-model --model NAME --devices N`` for one name after the other, each in a process of its own, and writes
what it took to partitioner/models/checked.json, which ``partition-model models`` shows, and to docs/results/models.md,
after every name: a run that was interrupted goes on where it ended. Names that have been planned for so many devices
are left out, unless they are named or --again asks for all.

Memory is that of the command and of the process that it forks to trace half a guidance batch, pages that they share
counted once, sampled every half a second; or the most that one process had, where that is more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from partitioner.models.built_in import BUILT_IN, built_in
from partitioner.models.checked import CHECKED_FILE, CheckedName, checked_names
from profiles.json_files import write_atomic
from tools.command import command

PAGE = Path(__file__).parents[2] / "docs" / "results" / "models.md"
WHERE = (
    "Where the time goes, of `svd`: 2 s are importing torch, 1.7 s its compiler, which its tensors without memory",
    "import, and 1.3 s what is needed of diffusers; 1 s is building the denoiser, 5 to 7 s tracing it (half of the",
    "guidance batch is traced beside that, in a forked process), and 3 s solving. What `torch.export` has to trace,",
    "because it reads tensors that are neither parameters nor buffers or runs under an autocast, takes twice as long:",
    "Chroma, HunyuanImage, HunyuanVideo, Kandinsky 5, Lumina 2, Mochi, Qwen-Image and Z-Image.",
)
LIMIT_S = 600.0
SAMPLE_S = 0.5


def check_name(name: str, devices: int) -> CheckedName:
    """Plan one name in a process of its own.

    Args:
        name: A built-in name.
        devices: How many to plan for.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "partitioner.cli", "--model", name, "--devices", str(devices), "--device", "h200",
            "--output", f"{folder}/plan.json", "--json",
        ]  # fmt: skip
        with open(f"{folder}/out", "w+") as out, open(f"{folder}/err", "w+") as err:
            start = time.perf_counter()
            process = subprocess.Popen(command, stdout=out, stderr=err)
            peak, code, usage = _watch(process, start)
            seconds = time.perf_counter() - start
            out.seek(0)
            err.seek(0)
            made, said = out.read(), err.read()
    plan = json.loads(made) if code == 0 else None
    return CheckedName(
        devices=devices,
        seconds=round(seconds, 1),
        cpu_seconds=round(usage.ru_utime + usage.ru_stime, 1),
        peak_bytes=max(peak, usage.ru_maxrss * 1024),
        trace_seconds=None if plan is None else round(plan["seconds"]["trace"], 1),
        nodes=None if plan is None else sum(part["nodes"] for part in plan["components"] if part["branch"] == 0),
        failed=None if plan is not None else _reason(said, code),
        versions=f"torch {version('torch')}, diffusers {version('diffusers')}",
    )


def _watch(process: subprocess.Popen[bytes], start: float) -> tuple[int, int, Any]:
    """The most memory of the process and its children, in bytes, its exit code, and what it used."""
    peak, watched = 0, psutil.Process(process.pid)
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            process.returncode = os.waitstatus_to_exitcode(status)
            return peak, process.returncode, usage
        try:
            family = [watched, *watched.children(recursive=True)]
            peak = max(peak, sum(member.memory_full_info().pss for member in family))
        except psutil.Error:  # one of them has just ended
            pass
        if time.perf_counter() - start > LIMIT_S:
            process.kill()
        time.sleep(SAMPLE_S)


def _reason(said: str, code: int) -> str:
    """The command's error, one line."""
    errors = [line.removeprefix("partition-model: error: ") for line in said.splitlines() if ": error: " in line]
    return errors[-1] if errors else f"exit code {code} after at most {LIMIT_S:.0f} s"


def page(checked: Mapping[str, CheckedName]) -> str:
    """docs/results/models.md."""
    planned = [entry for entry in checked.values() if entry.failed is None]
    lines = [
        "# Built-in names",
        "",
        "What `partition-model --model NAME --devices N` takes at the published size, without weights and without a",
        f"network, on {os.cpu_count()} cores ({platform.machine()}), other programs running beside it: the CPU seconds",
        "(of all threads and processes) are what a quiet machine divides among its cores. Made by",
        "`python -m tools.measure models`, which says what is counted as memory; `partition-model models` shows it.",
        "",
        f"{len(planned)} of {len(checked)} names that were tried are planned; "
        f"{sum(entry.seconds <= 60 for entry in planned)} of them within 60 s, "
        f"{sum(entry.peak_bytes <= 3e9 for entry in planned)} within 3 GB.",
        "",
        *WHERE,
        "",
        "| name | parameters | tokens | devices | seconds | of them tracing | CPU seconds | memory | nodes | with |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_row(name, checked[name]) for name in sorted(checked)),
    ]
    failed = {name: entry.failed for name, entry in sorted(checked.items()) if entry.failed is not None}
    if failed:
        lines += ["", "## Not planned yet", "", *(f"- `{name}`: {reason}" for name, reason in failed.items())]
    return "\n".join(lines) + "\n"


def _row(name: str, entry: CheckedName) -> str:
    known = built_in(name)
    cells = [
        f"`{name}`", f"{known.parameters / 1e9:.2f} B", f"{known.tokens:,}", str(entry.devices), f"{entry.seconds:.0f}",
        "" if entry.trace_seconds is None else f"{entry.trace_seconds:.0f}", f"{entry.cpu_seconds:.0f}",
        f"{entry.peak_bytes / 1e9:.2f} GB", "none" if entry.nodes is None else str(entry.nodes), entry.versions,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


@command("tools.measure.models")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit code 0 when every name that was tried was planned, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tools.measure models", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--names", nargs="+", choices=BUILT_IN, metavar="NAME", help="only these, again if need be")
    parser.add_argument("--devices", type=int, default=4, metavar="N", help="how many to plan for (default: 4)")
    parser.add_argument("--again", action="store_true", help="also those that have been planned")
    parser.add_argument("--json", action="store_true", help="print what was measured as one JSON document")
    options = parser.parse_args(arguments)

    done = dict(checked_names())
    planned = {name for name, entry in done.items() if entry.devices == options.devices and entry.failed is None}
    names = options.names or [name for name in BUILT_IN if options.again or name not in planned]
    for name in names:
        done[name] = check_name(name, options.devices)
        entries = {key: done[key].as_json() for key in sorted(done)}
        write_atomic(CHECKED_FILE, (json.dumps(entries, indent=1) + "\n").encode(), overwrite=True)
        write_atomic(PAGE, page(done).encode(), overwrite=True)
        print(f"{name}: {done[name]}", file=sys.stderr, flush=True)
    tried = {name: done[name] for name in names}
    print(
        json.dumps({name: entry.as_json() for name, entry in tried.items()}, indent=1) if options.json else page(done)
    )
    return int(any(entry.failed is not None for entry in tried.values()))


if __name__ == "__main__":
    raise SystemExit(main())
