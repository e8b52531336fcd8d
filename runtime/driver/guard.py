"""Guard: makes a call of look-ahead exact where the error that it would pass on is too large.

At every call the true latent says by how much its prediction missed. What the components have worked on is off by
that, and so is the output. By how much nobody knows before the call is over; what is known is

    J·missed          J as past calls have shown it, with guidance in it, for it is read off the
                      latents; a correction is not counted on to take a part of it back
    doubt·surprise    how far the last moves' slope was from the one that was foreseen (``Forecast.errors``), as far
                      as predictions are in doubt: before calls have shown J, and where it changes

and the larger of the two is taken for the error of the slope. What it is worth in the last latent the sampler's weights
say (runtime.driver.amplification). They need to know how strongly outputs answer to latents in calls to come. Guidance
adds to that, the more the larger its scale, which the calls show (runtime.driver.output_mix): of all that is possible
the worst is taken. So where guidance is too strong for a sampler with so few steps, calls are exact from the
first one on. Warm-up, callbacks that change latents and prompts that change are all the same to it: the harm tells.

The harm of all calls together bounds the error of the last latent. Each call may do its share of the bound, and what
calls before it have left of theirs, up to CARRIED shares; one that would do more is made exact. What trajectories
before it in the generation have passed on (runtime.driver.spent) is no longer to be shared out. Where guidance rises,
errors that were let pass are reckoned anew, and may then be worth more than the bound: no call can take them back, and
the user is told.

Nor may a multistep sampler's error be worth much more than to leave the call out, and to go on with the output before:
then fewer steps would come as near. By its weights an error can be worth several moves (late ones of LMS are made of
2.2, -2.1, 1.2 and -0.25 of the last four outputs), and the last calls are worst, whose errors no later one forgets.
Guidance strikes fewer steps as well, and is left out there.

The bound is given as a PSNR in dB that pictures are to have against those of the sequential run. That is a matter of
the decoder and of how much of the harm comes true: MARGIN is such that of the pictures that were measured no more than
1 in 100 fell below (docs/results/look-ahead.md).
"""

from __future__ import annotations

import numpy as np
import torch

from runtime.driver.amplification import Amplification
from runtime.driver.astray import USEFUL
from runtime.driver.correction import narrow, shared_part
from runtime.driver.forecast import Forecast
from runtime.driver.noise_schedule import NoiseSchedule
from runtime.driver.output_mix import OutputMix
from runtime.driver.outputs_beside import OutputsBeside, Shown
from runtime.driver.readback import HostValues, read
from runtime.driver.secants import flat
from runtime.driver.spent import Spent

MARGIN = 10.0  # dB; a picture's PSNR + 20·log10 of the bound is hardly ever below it
CARRIED = 3.0  # shares that one call may use; measured: docs/results/look-ahead.md
LEFT_OUT = 1.5  # times what it costs to leave a call out, measured there, too; corrections take half of an error back
NO_HARM = 1e-4  # root mean square in the last latent; all that is left where a trajectory is straight is rounding


class Guard:
    """Makes calls of one trajectory exact.

    Args:
        noise_schedule: of the trajectory's calls.
        quality: PSNR in dB of the pictures against the sequential run's.
        forecast: of the latent.
        beside: what the generation's other streams give.
        generation: what its trajectories have passed on so far.

    >>> bound_of(50.0)
    0.01
    """

    def __init__(
        self,
        noise_schedule: NoiseSchedule,
        quality: float,
        forecast: Forecast,
        beside: OutputsBeside,
        generation: Spent,
    ) -> None:
        self._noise_schedule, self._forecast, self._beside = noise_schedule, forecast, beside
        self._name = object()  # of the stream, which others' guards may ask for when it has ended
        self._amplification = Amplification(noise_schedule)
        self._generation, self._before = generation, generation.most
        self._bound = bound_of(quality)
        self._share = max(0.0, self._bound - self._before) / noise_schedule.calls
        # of the calls that were let pass, [calls, rows]: the errors of their slopes, and what one of 1 is worth
        self._errors: HostValues = np.zeros((noise_schedule.calls, 1))
        self._worth: HostValues = self._errors
        self._added: HostValues = np.full(1, np.inf)  # by guidance when that was last asked
        self._mix, self._mixed = OutputMix(), 0  # of the outputs of so many streams
        self._last: tuple[Shown, int] | None = None  # of the last call, and the call
        self._unread: list[list[torch.Tensor]] = []  # what the mix is to be told of the last calls

    def show(self, output: torch.Tensor, call: int) -> None:
        """Take an output of a call whose latent the forecast has observed."""
        latent = self._forecast.latent
        part = shared_part(output, latent)
        if part is not None:
            made = narrow(output, part).to(torch.float32, copy=True)  # which the pipeline may write into
            shown = Shown(self._noise_schedule.level[call], made, narrow(latent, part).float())
            self._beside.show(self._name, shown)
            self._last = shown, call

    def observe(self, sign: float) -> None:
        """Take note that the forecast has observed the latent of the next call, which shows what outputs came to.

        sign: -1 where outputs are turned round.
        """
        last, self._last = self._last, None
        shown = self._forecast.shown
        if last is None:
            self._mix.show(None, shown)
            self._unread = []
            return
        own, call = last
        outputs = [own, *self._beside.of_others(self._name, own)]
        made = [
            self._noise_schedule.slope_of(some.output if sign > 0 else -some.output, some.latent, call)
            for some in outputs
        ]
        if own.output.shape != self._forecast.latent.shape:
            shown = flat(narrow(shown.view(self._forecast.latent.shape), tuple(own.output.shape)))
        if self._mixed != len(made):  # guidance has begun, or ended
            self._mix, self._mixed, self._unread = OutputMix(), len(made), []
        if len(made) == 1:
            told = self._mix.show(flat(made[0]), shown)
        else:
            told = self._mix.show(flat(torch.cat(made)), shown.repeat(len(made), 1, 1))
        if told:
            self._unread.append(told)

    @np.errstate(all="ignore")
    def refuses(self, call: int) -> bool | None:
        """Whether look-ahead's error at a call is too large in some row; None if nothing was predicted. Waits.

        call: of the trajectory; its latent has been observed.
        """
        errors = self._forecast.errors()
        if errors is None:
            return None
        unread, self._unread = self._unread, []
        doubt, far, moving, *told = read([self._forecast.doubt, *errors, *(one for each in unread for one in each)])
        for each in unread:
            self._mix.take(*(told.pop(0) for _ in each))
        # root mean squares over what moves
        missed, answer, slope, *change = (far / np.sqrt(np.maximum(moving, 1.0))).T
        # how far the latent missed, over the length of its last move: so large an error the output's answer to that
        # can be; where it is larger the sampler itself overshoots
        length = self._forecast.length
        surprise = missed / length if length > 0.0 else np.zeros_like(missed)
        off = np.maximum(answer, doubt[:, 0, 0] * surprise)
        rows, gain, rise = len(off), self._mix.gain, self._mix.rise
        added = np.zeros_like(off) if gain is None else gain[:rows] - 1.0  # those of this stream's rows come first
        spent = self._reckoned_anew(call, added)
        if rise is not None:  # a scale that rises may go on to
            added = added + (self._noise_schedule.calls - call) * rise[:rows]
        # so many calls in a row have been begun with one and the same error
        alike = max(1, self._forecast.reach)
        worth = self._amplification.at_most(call, added)
        harm = worth * alike * off
        # an error of a whole move is no small one, whatever the weights make of it
        near = surprise <= USEFUL / alike * slope
        left = np.minimum(self._share * (call + 1) - spent, CARRIED * self._share)
        distance = abs(sum(self._noise_schedule.moves[call]))  # of the move after the call, over the level
        if change and self._noise_schedule.multistep and distance > 1e-9:
            alone = alike * self._amplification.at_most(call, np.zeros_like(off)) * off
            near = near & (alone <= LEFT_OUT * distance * change[0] + NO_HARM)
        passes = bool(((harm <= left) & near).all())  # not ``harm > left``: what is not finite is refused
        if passes:
            self._errors[call] += alike * off
            self._worth[call] = worth
            self._tell()
        return not passes

    def _reckoned_anew(self, call: int, added: HostValues) -> HostValues:
        """By row, the harm of the calls before one that were let pass, with what guidance adds by now."""
        self._worth = np.maximum(self._worth, self._amplification.at_most(slice(None), added))
        self._errors = self._errors + np.zeros_like(added)
        # what is added shows in the move that the last output made, which was reckoned with what had been before
        self._errors[call - 1] *= np.maximum(1.0, (1.0 + added) / (1.0 + self._added))
        self._added = added
        return self._tell()

    def _tell(self) -> HostValues:
        """Tell the generation of the harm of the calls that were let pass; returns it by row."""
        harm: HostValues = (self._worth * self._errors).sum(0)
        self._generation.add(self._before + float(harm.max()), self._bound)
        return harm


def bound_of(quality: float) -> float:
    """The largest error, as root mean square, that the last latent may have for pictures of such a PSNR in dB."""
    return float(10.0 ** ((MARGIN - quality) / 20.0))
