"""How much the output suffers when a component reads what is a step old."""
