"""Measures this machine: links (us, GB/s), operators (ms), what costs, checks and messages take, what long runs hold.

python -m tools.measure links --ranks 2
python -m tools.measure profile --model sd15-like --output sd15-like.json
python -m tools.measure costs
python -m tools.measure checks
python -m tools.measure messages
python -m tools.measure host
python -m tools.measure models
python -m tools.measure long-runs --calls 5000
"""

from __future__ import annotations

from collections.abc import Sequence

from tools.measure import checks, costs, host, links, long_runs, messages, models, profile
from tools.subcommands import run_subcommand

COMMANDS = {
    "links": (links.main, "latency (us) and bandwidth (GB/s) between every ordered pair of ranks"),
    "profile": (profile.main, "time (ms) of every distinct operator call of a denoiser, as a cost profile"),
    "costs": (costs.main, "error (%) of times that are predicted from operator costs"),
    "checks": (checks.main, "time (ms) of a step with and without checks of its messages"),
    "messages": (messages.main, "time (us) of a message between two ranks, to send, to read, and there and back"),
    "host": (host.main, "time (ms) and operators that an engine takes of the host in a steady call"),
    "long-runs": (long_runs.main, "memory (MiB), descriptors and threads of an engine's processes after so many calls"),
    "models": (models.main, "seconds and memory (GB) of planning every built-in name"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one measurement; its exit code."""
    return run_subcommand("python -m tools.measure", __doc__.split("\n")[0], COMMANDS, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
