"""Tokenizers of the words that captions of drawn pictures are written with; every word is one token."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, trainers
from transformers import CLIPTokenizer, GemmaTokenizer, T5Tokenizer

from tools.pictures.shapes import WORDS

TOKENS = 16  # length of a prompt


def clip_tokenizer() -> Any:
    """A CLIPTokenizer whose merges make each word one token."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, special_tokens=["<|startoftext|>", "<|endoftext|>"], end_of_word_suffix="</w>",
        initial_alphabet=[chr(code) for code in range(ord("a"), ord("z") + 1)], show_progress=False,
    )  # fmt: skip
    trained.train_from_iterator(WORDS, trainer)
    model = json.loads(trained.to_str())["model"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps(model["vocab"]))
        merges.write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]) + "\n")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=TOKENS)


def t5_tokenizer() -> Any:
    """A T5Tokenizer with one piece per word."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -10.0), *((f"▁{word}", -1.0) for word in WORDS)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TOKENS)


def gemma_tokenizer() -> Any:
    """A GemmaTokenizer whose merges make each word one token, with the space before it if there is one."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(vocab_size=10_000, special_tokens=special, show_progress=False)
    trained.train_from_iterator([*WORDS, *(f"▁{word}" for word in WORDS)], trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return GemmaTokenizer(vocab=model["vocab"], merges=merges, add_bos_token=True, model_max_length=TOKENS)
