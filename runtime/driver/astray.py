"""Astray: whether latents missed their predictions by so much that these were of no use, on the host.

Near 1, as a share of the latent's own move, to hold the latent before would have been no worse; and errors add up from
call to call.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from runtime.driver.damping import NOTHING
from runtime.driver.forecast import LAST
from runtime.driver.noise_schedule import NoiseSchedule
from runtime.driver.readback import Readback

# A prediction that misses by a larger share of the latent's move is of no use, with samplers whose gain is at most 2.
# With others the share is smaller by as much, for their moves amplify the errors that predictions cause.
USEFUL, GAIN = 0.75, 2.0
WELL = 4.0  # what misses by a share that is smaller by so much is predicted well


class Astray:
    """Of one latent input of a trajectory.

    Args:
        noise_schedule: of the trajectory's calls.

    Attributes:
        is_astray: whether the last latent that was looked at missed its prediction by too much, over all rows.
        has_jumped: whether it is astray though those before it were predicted well. Then what is known of them says
            nothing of what comes: the latent is of somebody else's making.
    """

    def __init__(self, noise_schedule: NoiseSchedule) -> None:
        self.is_astray = self.has_jumped = False
        self._useful = USEFUL * min(1.0, GAIN / noise_schedule.gain)
        self._largest: deque[float] = deque(maxlen=LAST - 1)  # shares of the last latents' moves, squared
        self._unread: deque[tuple[Readback, bool]] = deque()  # and whether the latent counts

    def show(self, squares: torch.Tensor) -> None:
        """Take the squares of what a latent missed its prediction by and of its move, (rows, 2, 1)."""
        self._unread.append((Readback(squares), True))

    @np.errstate(all="ignore")
    def look(self, unread: int) -> None:
        """Look at the latents that were shown, but for the last ``unread`` ones; waits for the others."""
        self.is_astray = self.has_jumped = False
        while len(self._unread) > unread:
            readback, counts = self._unread.popleft()
            off, far = readback.values().swapaxes(0, 1)
            well = bool(self._largest) and all(share < (self._useful / WELL) ** 2 for share in self._largest)
            self.is_astray = counts and bool(off.sum() > self._useful**2 * far.sum())
            self.has_jumped = self.is_astray and well
            self._largest.append(float((off / np.maximum(far, NOTHING)).max()))

    def begin_anew(self) -> None:
        """Calls from here on work on new predictions: what was shown and not looked at refuses none."""
        self._unread = deque((readback, False) for readback, _ in self._unread)
