"""Mutations: each says what it changed, changes something, and is made again from the same seed."""

from __future__ import annotations

import contextlib
import json
from random import Random

from tools.mutate.documents import damaged, mutated_json

DOCUMENT = {"a": 1, "b": [1, 2, {"c": "text"}], "d": {"e": None, "f": 0.5}}
DATA = json.dumps(DOCUMENT).encode()


def test_mutations_are_made_again_from_their_seed_and_are_many() -> None:
    made = [mutated_json(DATA, Random(number)) for number in range(200)]
    assert made == [mutated_json(DATA, Random(number)) for number in range(200)]
    assert len({data for data, _ in made}) > 120
    assert all(what for _, what in made)
    assert sum(data == DATA for data, _ in made) < 20


def test_most_mutations_are_json_that_says_something_else() -> None:
    others = 0
    for number in range(200):
        data, _ = mutated_json(DATA, Random(number))
        with contextlib.suppress(ValueError, RecursionError):
            others += json.loads(data) != DOCUMENT
    assert 100 < others < 200


def test_damages_reach_from_nothing_to_deep_nesting() -> None:
    made = {what.split(" at ")[0]: data for data, what in (damaged(DATA, Random(number)) for number in range(300))}
    assert made["emptied"] == b""
    assert made["deep lists"].startswith(b"[[[[")
    assert made["doubled"] == DATA + DATA
    assert len(made) >= 14
