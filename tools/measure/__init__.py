"""Measurements of this machine: links, operators, what costs are worth, what checking messages costs."""
