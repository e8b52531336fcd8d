"""Mutated plans, profiles, pipeline folders and weights, and how the commands end on them."""
