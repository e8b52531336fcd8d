"""tools.quality.amplification: what an error of one output is really worth."""

from __future__ import annotations

import pytest

from tools.quality import amplification


@pytest.mark.slow
def test_what_an_error_is_worth_at_the_last_call_is_the_last_move(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--denoiser", "mmdit", "--sampler", "flow_shift3", "--guidance", "7.5"]
    assert amplification.main([*arguments, "--steps", "6", "--samples", "2"]) == 0
    rows = [[float(word) for word in line.split()] for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == [3, 4, 5]
    assert rows[-1][2:6] == pytest.approx([rows[-1][1]] * 4, rel=0.02)  # its level is all that is left to go
    assert all(0 < row[2] <= row[3] <= row[4] for row in rows)
    assert rows[0][4] > rows[-1][4]


@pytest.mark.slow
def test_a_sampler_that_draws_noise_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--denoiser", "unet", "--sampler", "euler_ancestral", "--guidance", "3"]
    assert amplification.main([*arguments, "--steps", "4", "--samples", "1"]) == 2
    assert "nothing is foreseen here" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--guidance", "1"], ["--steps", "3"], ["--samples", "0"], ["--guidance", "nan"]])
def test_what_there_is_nothing_to_measure_of_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--denoiser", "mmdit", "--sampler", "flow", "--guidance", "3", *wrong]
    assert amplification.main(arguments) == 2
    assert "expected --guidance over 1, 4 --steps or more" in capsys.readouterr().err
