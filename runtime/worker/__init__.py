"""A rank's side of a denoiser call: its component, its program, its predictors."""
