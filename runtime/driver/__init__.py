"""The driver's side of a denoiser call: what it is, which trajectory it belongs to, who computes what."""
