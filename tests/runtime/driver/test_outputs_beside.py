"""OutputsBeside: which outputs of other streams belong to one of this one's."""

from __future__ import annotations

import torch

from runtime.driver.outputs_beside import OutputsBeside, Shown, outputs_by_latent


class _Owner:
    """A stream."""


def _shown(level: float, *shape: int) -> Shown:
    return Shown(level, torch.zeros(shape or (1, 2)), torch.zeros(shape or (1, 2)))


def test_those_of_others_at_the_same_level_and_of_the_same_shape() -> None:
    beside, owners = OutputsBeside(), [_Owner(), _Owner(), _Owner()]
    first, second, third = _shown(0.5), _shown(0.5), _shown(0.5, 2, 2)
    for owner, shown in zip(owners, (first, second, third), strict=True):
        beside.show(owner, shown)
    assert beside.of_others(owners[0], first) == [second]
    assert beside.of_others(owners[1], second) == [first]
    assert beside.of_others(owners[2], third) == []
    assert beside.of_others(owners[0], _shown(0.4)) == []


def test_the_last_two_levels_are_there() -> None:
    beside, ahead, behind = OutputsBeside(), _Owner(), _Owner()
    shown = [_shown(level) for level in (0.9, 0.8, 0.7)]
    for one in shown:
        beside.show(ahead, one)
    assert [beside.of_others(behind, one) for one in shown] == [[], [shown[1]], [shown[2]]]


def test_a_stream_that_has_ended_still_has_what_it_gave() -> None:
    """The first of two calls of the last step ends its stream before the second one asks."""
    beside, owner, other, last = OutputsBeside(), _Owner(), _Owner(), _shown(0.5)
    beside.show(owner, last)
    del owner
    assert beside.of_others(other, _shown(0.5)) == [last]


def test_latents_have_their_own() -> None:
    by_latent = outputs_by_latent()
    assert by_latent["sample"] is by_latent["sample"] is not by_latent["image"]
