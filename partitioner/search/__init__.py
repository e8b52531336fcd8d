"""Numbers in, split out: the solvers, which know no graph and no torch."""
