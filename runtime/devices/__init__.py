"""What differs between CPUs and GPUs."""
