"""Comparisons with what AsyncDiff's paper and code publish: speed-ups and splits."""
