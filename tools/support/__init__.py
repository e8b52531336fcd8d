"""What of diffusers the project supports: each denoiser class and pipeline, made small, with random weights."""
