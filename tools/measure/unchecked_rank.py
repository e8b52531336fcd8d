"""unchecked_rank: a rank's process whose messages are believed unread, for tools.measure.messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.ranks import rank_process


def believe(mailbox: Any) -> None:
    """Make a mailbox, or all of a class, use messages without checking that they belong.

    Only the key is read of a header: without it a message could not be told from another.
    """

    def find(words: Sequence[int], _peer: int, _sequence: int, box: Any = mailbox) -> Any:
        from runtime.transport.header import RECEIPT
        from runtime.transport.mailbox import MessageKey

        key = MessageKey(*words[4:8])
        if key == RECEIPT:
            return None
        with box._changed:
            box._changed.wait_for(lambda: key.table in box._tables or box._closing)
        return key, box._tables[key.table][key.wire]

    mailbox._check_header = find
    mailbox._check_sent = lambda _key, _tensor: None
    mailbox._stray = lambda _key: None


def main() -> None:
    """As runtime.ranks.rank_process, with a mailbox that believes."""
    from runtime.ranks import rank_main as serve
    from runtime.transport import gloo as transport

    class Believing(transport.GlooMailbox):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._closing = False
            believe(self)
            super().__init__(*args, **options)

    serve.GlooMailbox = Believing  # type: ignore[attr-defined]
    rank_process.main()


if __name__ == "__main__":
    main()
