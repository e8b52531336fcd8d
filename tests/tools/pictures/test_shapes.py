"""tools.pictures.shapes: what is drawn is what the labels say."""

from __future__ import annotations

import torch

from tools.pictures.shapes import BACKGROUNDS, CHOICES, COLOURS, PLACES, SHAPES, SIZE, WORDS, caption, draw, draw_labels
from tools.pictures.tokenizers import TOKENS, clip_tokenizer, gemma_tokenizer, t5_tokenizer


def test_a_picture_shows_its_colour_in_its_place_on_its_background() -> None:
    labels = torch.tensor([[s, c, b, p] for s in range(4) for c in range(6) for b in range(6) for p in range(5)])
    pictures = draw(labels, torch.Generator().manual_seed(0))
    assert pictures.pixels.shape == (len(labels), 3, SIZE, SIZE)
    assert pictures.pixels.abs().max() <= 1
    colours, grounds, places = (torch.tensor(list(t.values())) for t in (COLOURS, BACKGROUNDS, PLACES))
    row = torch.arange(len(labels))
    column, line = ((places[labels[:, 3]] + 1) / 2 * SIZE).long().unbind(1)
    torch.testing.assert_close(pictures.pixels[row, :, line, column], colours[labels[:, 1]] * 2 - 1, atol=0.3, rtol=0)
    torch.testing.assert_close(pictures.pixels[:, :, 0, 0], grounds[labels[:, 2]] * 2 - 1, atol=2e-2, rtol=0)


def test_shapes_cover_different_parts_of_the_picture() -> None:
    labels = torch.tensor([[shape, 0, 0, 0] for shape in range(len(SHAPES))])
    pixels = torch.stack([draw(labels[i : i + 1], torch.Generator().manual_seed(0)).pixels[0] for i in range(4)])
    areas = (pixels[:, 0] > 0).sum((1, 2)).tolist()
    assert len(set(areas)) == 4
    assert min(areas) > 0.05 * SIZE**2


def test_the_same_seed_draws_the_same() -> None:
    one, other = (draw(draw_labels(8, g), g) for g in (torch.Generator().manual_seed(3) for _ in range(2)))
    torch.testing.assert_close(one.pixels, other.pixels, rtol=0, atol=0)


def test_every_choice_is_drawn_and_named() -> None:
    labels = draw_labels(2000, torch.Generator().manual_seed(0))
    assert [labels[:, i].unique().numel() for i in range(4)] == list(CHOICES)
    assert caption([0, 0, 3, 1]) == "a red circle on navy left"


def test_every_word_is_one_token_and_a_caption_fits() -> None:
    for tokenizer in (clip_tokenizer(), t5_tokenizer(), gemma_tokenizer()):
        assert [word for word in WORDS if len(tokenizer.tokenize(word)) != 1] == []
        found = tokenizer(caption([3, 5, 1, 0])).input_ids
        assert len(set(found)) >= 7
        assert len(found) <= TOKENS
