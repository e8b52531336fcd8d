"""A rank's process that uses messages without checking them, for python -m tools.measure messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.ranks import rank_process


def skip_checks(mailbox: Any) -> None:
    """Make a mailbox use messages without checking that they belong to this plan and this step.

    Of a header only the key is read, without which messages could not be told apart.
    """

    def find(words: Sequence[int], _peer: int, _sequence: int, box: Any = mailbox) -> Any:
        from runtime.transport.header import key_of

        key = key_of(words)
        return key, box._tables[key.table][key.wire]

    mailbox._check_header = find
    mailbox._check_sent = lambda _key, _tensor: None
    mailbox._stray = lambda _key: None


def main() -> None:
    """Run runtime.ranks.rank_process with a mailbox that checks nothing."""
    from runtime.ranks import rank_main as serve
    from runtime.transport.connect import connected_mailbox

    def unchecked_mailbox(*args: Any, **options: Any) -> Any:
        mailbox = connected_mailbox(*args, **options)
        skip_checks(mailbox)
        return mailbox

    serve.connected_mailbox = unchecked_mailbox  # type: ignore[attr-defined]
    rank_process.main()


if __name__ == "__main__":
    main()
