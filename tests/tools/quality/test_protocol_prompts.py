"""Prompts of data sets: COCO's captions, DrawBench's table, and lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from partitioner.errors import UsageError
from tools.quality.protocol_prompts import Prompt, digest, read_prompts


def coco() -> dict[str, Any]:
    """Two pictures, out of order, with two captions and one; and a picture without a caption."""
    return {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 3, "file_name": "3.jpg"}, {"id": 5, "file_name": "5.jpg"}],
        "annotations": [
            {"id": 12, "image_id": 7, "caption": "a dog\n at rest "},
            {"id": 11, "image_id": 7, "caption": "a dog"},
            {"id": 10, "image_id": 3, "caption": "a cat"},
        ],
    }


def test_coco_has_a_prompt_per_picture_and_takes_its_captions_in_turn(tmp_path: Path) -> None:
    file = tmp_path / "captions.json"
    file.write_text(json.dumps(coco()))
    assert read_prompts(file) == [Prompt("a cat", "3.jpg"), Prompt("a dog at rest", "7.jpg")]


def test_tables_and_lists(tmp_path: Path) -> None:
    table, plain, texts = tmp_path / "drawbench.csv", tmp_path / "prompts.txt", tmp_path / "prompts.json"
    table.write_text('Prompts,Category\n"A red car, parked.",Colors\n,Colors\nA blue dog.,Colors\n')
    assert read_prompts(table) == [Prompt("A red car, parked."), Prompt("A blue dog.")]
    plain.write_text("a cat\n\n  a dog\n")
    assert read_prompts(plain) == [Prompt("a cat"), Prompt("a dog")]
    texts.write_text('["a cat", {"prompt": "a dog", "image": "7.jpg"}]')
    assert read_prompts(texts) == [Prompt("a cat"), Prompt("a dog", "7.jpg")]
    assert digest(read_prompts(texts)) == digest(read_prompts(plain)) != digest(read_prompts(table))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "{", "cannot be read"),
        ("a.json", '{"images": []}', "cannot be read"),
        ("a.json", "[]", "holds no prompt"),
        ("a.csv", "Number\n1\n", "no column prompts"),
        ("a.txt", "\n", "holds no prompt"),
        ("missing.txt", None, "cannot be read"),
    ],
)
def test_what_holds_no_prompts_is_refused(name: str, content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=said):
        read_prompts(tmp_path / name)
