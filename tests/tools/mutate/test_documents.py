"""Mutations: each says what it changed, changes something, and is made again from the same seed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from random import Random

from tools.mutate.documents import damaged, mutated_file, mutated_json

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


def test_every_second_mutated_file_can_be_loaded(tmp_path: Path) -> None:
    original, file = tmp_path / "original", tmp_path / "file"
    original.write_bytes(DATA)

    def load(path: Path) -> None:
        if not isinstance(json.loads(path.read_bytes())["a"], int):
            raise ValueError

    loaded = 0
    for number in range(60):
        assert mutated_file(original, file, load, Random(number))
        with contextlib.suppress(Exception):
            load(file)
            loaded += json.loads(file.read_bytes()) != DOCUMENT
    assert 30 < loaded < 60
