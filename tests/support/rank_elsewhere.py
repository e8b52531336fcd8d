"""A rank's process that says it is on another machine than it is: ``python -m tests.support.rank_elsewhere ...``."""

from __future__ import annotations

from runtime.ranks import rank_process

ELSEWHERE = "another machine"


def main() -> None:
    """Run runtime.ranks.rank_process."""
    from runtime.transport import neighbours

    neighbours.boot_id = lambda: ELSEWHERE
    rank_process.main()


if __name__ == "__main__":
    main()
