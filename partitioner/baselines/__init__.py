"""Other ways to split the same denoiser, for comparison."""
