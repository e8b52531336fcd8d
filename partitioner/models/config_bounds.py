"""check_sizes: numbers in a pipeline's configurations that a library makes a table or a row of are those of a model."""

from __future__ import annotations

from pathlib import Path

from partitioner.errors import UsageError
from partitioner.models.samplers import MOST_TIMESTEPS
from profiles.json_files import JsonFileError, read_json

_MOST_BYTES = 1_000_000
_NO_LIMIT = 10**20  # from here on transformers takes a tokenizer's for none
# file -> key -> the most that it may be: tables that schedulers hold, and how long a prompt is made by padding
_MOST = {
    "scheduler_config.json": ("num_train_timesteps", MOST_TIMESTEPS),
    "tokenizer_config.json": ("model_max_length", 2_000_000),
}


def check_sizes(file: Path) -> None:
    """Refuse a configuration that asks for a table of absurd size, of which libraries would make one.

    Args:
        file: Of a part; one of another name, or that cannot be read, passes.

    Raises:
        UsageError: A number is too large.
    """
    if file.name not in _MOST:
        return
    key, most = _MOST[file.name]
    try:
        document = read_json(file, _MOST_BYTES)
    except JsonFileError:  # whoever needs it says so
        return
    value = document.get(key) if isinstance(document, dict) else None
    if isinstance(value, (int, float)) and most < value < _NO_LIMIT:
        raise UsageError(f"{file} has a {key} of {value}; expected at most {most}")
