"""The engine beside the unmodified denoiser and AsyncDiff's policy, timed by turns on this machine."""
