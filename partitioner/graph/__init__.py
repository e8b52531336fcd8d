"""A denoiser as a graph of plain data: tracing it, and what its operators do."""
