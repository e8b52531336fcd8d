"""PredictorName: what turns earlier values of a boundary tensor into an estimate of the current one."""

from __future__ import annotations

from typing import Literal, get_args

PredictorName = Literal["hold", "linear", "adaptive"]
PREDICTORS: tuple[PredictorName, ...] = get_args(PredictorName)
