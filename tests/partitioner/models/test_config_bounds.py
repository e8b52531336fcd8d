"""check_sizes: absurd tables are refused by their number, before they are made; what has none passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from partitioner.errors import UsageError
from partitioner.models.config_bounds import check_sizes

TABLES = {"scheduler_config.json": ("num_train_timesteps", 1000), "tokenizer_config.json": ("model_max_length", 77)}


@pytest.mark.parametrize("name", TABLES)
def test_numbers_of_no_model_are_refused(name: str, tmp_path: Path) -> None:
    key, usual = TABLES[name]
    file = tmp_path / name
    for value in (usual, 10**30, "x", None, -1):  # transformers writes 10**30 where there is no limit
        file.write_text(json.dumps({key: value}))
        check_sizes(file)
    for value in (10**7, 1e12):
        file.write_text(json.dumps({key: value}))
        with pytest.raises(UsageError, match=rf"{name} has a {key} of 1.*; expected at most \d+$"):
            check_sizes(file)


@pytest.mark.parametrize("text", ["[]", "junk", ""])
def test_others_find_what_else_is_wrong_with_a_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_text(text)
    check_sizes(tmp_path / "scheduler_config.json")
    check_sizes(tmp_path / "config.json")
