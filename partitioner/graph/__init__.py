"""A denoiser as a graph of plain data: tracing it, and knowing what its operators do."""
