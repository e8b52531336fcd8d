"""Ways to run the engine as the command line writes them."""

from __future__ import annotations

import pytest

from partitioner.errors import UsageError
from tools.quality.engine_config import EngineConfig, parse_config


def test_ways_as_they_are_written() -> None:
    assert parse_config("4") == EngineConfig(4)
    assert parse_config("4:1:free:hold") == EngineConfig(4, 1, "free", "hold")
    assert parse_config("4:1:free:adaptive:2") == EngineConfig(4, 1, "free", "adaptive", 2)
    for wrong in ("", "x", "0", "2:0", "2:x", "2:1:round", "2:1:chain:guess", "2:1:free:hold:0", "2:1:free:hold:2:3"):
        with pytest.raises(UsageError, match="--ways"):
            parse_config(wrong)
