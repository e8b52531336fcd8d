"""Measurements of this machine: links, operators, what costs are worth, what messages and checking them cost."""
