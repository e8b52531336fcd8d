"""Where ranks run: emulated, threads, processes, or under torchrun."""
