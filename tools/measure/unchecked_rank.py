"""A rank's process that uses messages without checking them, for python -m tools.measure checks."""

from __future__ import annotations

from typing import Any

import torch

from runtime.ranks import rank_process
from runtime.transport.checked import Announced
from runtime.transport.header import Header, description_of
from runtime.transport.layout import Layout


def skip_checks(mailbox: Any) -> None:
    """Make a mailbox use messages without checking that they belong to this plan and this step.

    Of a header only the key is read, without which messages could not be told apart; and of a wire's first one, what it
    carries.
    """

    announced: dict[tuple[int, ...], Announced] = {}

    def find(header: Header, _peer: int, _sequence: int) -> Announced:
        wire = header.key[:2]
        if wire not in announced:
            dtype, size_bytes, shape, stride = description_of(header.described)
            layout = Layout(getattr(torch, dtype), shape, stride, size_bytes)
            announced[wire] = Announced(header.described, mailbox._tables[wire[0]][wire[1]], layout)
        return announced[wire]

    mailbox.check_header = find
    mailbox.check_sent = lambda _key, _tensor: None
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
