"""A plan played on a simulated machine."""
