"""Sampler: what a sampler does on its timesteps.

Legend: p_k is the latent that a pipeline passes to the denoiser at call k, p = a·c + b·ε with c the clean latent and ε
the noise; for most samplers a² + b² = 1, for flow matching a + b = 1. Then z = p/a and the level s = b/a; for flow
matching z = p and s = b. A sampler is *straight* if with outputs that mean one and the same c and ε at every call, each
latent lies on the line of that c and ε. W[k, j] is how much z_k changes with the noise that the output of call j means;
of a straight sampler W[k] sums to s_k - s_0.
"""

from __future__ import annotations

from dataclasses import dataclass

# What an output may mean: ε, a·ε - b·c, c, ε - c, or c - ε.
MEANINGS = ("epsilon", "v_prediction", "sample", "flow", "reversed_flow")
CLIPS = (
    "it clips what is large in the picture (clip_sample, thresholding), so that errors of outputs count for more than "
    "is known"
)


@dataclass(frozen=True)
class Sampler:
    """What a sampler does on its timesteps.

    Attributes:
        calls: how many calls of the denoiser a trajectory has.
        noise: whether it adds noise of its own.
        meaning: one of MEANINGS, what the denoiser's outputs mean; None where no meaning makes the sampler straight.
        clean: a of each call; empty where ``meaning`` is None.
        noisy: b of each call.
        multistep: whether a move combines outputs of earlier steps.
        second_share: None unless a step is two calls, at even and odd calls; then the weight of the second output.
        gain: how much larger than an error in all outputs the error of a move can be; 1 for samplers of one step.
        moves: of every move of z, from a call to the next and from the last one to the end, the weights of the noise
            that outputs mean: that of the call's own output first, then those before it; empty where ``refusal`` says
            that nothing can be predicted.
        refusal: why later latents cannot be predicted, as the end of a sentence; None where they can.
        clips: whether a step clips what is large in the picture, as ``clip_sample`` and ``thresholding`` do.
    """

    calls: int
    noise: bool = False
    meaning: str | None = None
    clean: tuple[float, ...] = ()
    noisy: tuple[float, ...] = ()
    multistep: bool = False
    second_share: float | None = None
    gain: float = 1.0
    moves: tuple[tuple[float, ...], ...] = ()
    refusal: str | None = None
    clips: bool = False

    def refuses(self, *, guarded: bool) -> str | None:
        """Why there is no look-ahead with it, as the end of a sentence; None where there is.

        guarded: whether it has to be known what errors of outputs count for.
        """
        return CLIPS if self.refusal is None and guarded and self.clips else self.refusal

    @property
    def flow(self) -> bool:
        """Whether the denoiser's outputs mean a flow, ε - c or c - ε."""
        return self.meaning in ("flow", "reversed_flow")

    @property
    def scale(self) -> tuple[float, ...]:
        """What a latent is divided by to get z, of each call."""
        return (1.0,) * len(self.clean) if self.flow else self.clean

    @property
    def level(self) -> tuple[float, ...]:
        """s of each call."""
        return tuple(b / a for a, b in zip(self.scale, self.noisy, strict=True))
