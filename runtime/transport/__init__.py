"""How tensors and weights get from one rank to another."""
