"""The driver: reads each denoiser call, finds its trajectory, and has the ranks compute it."""
