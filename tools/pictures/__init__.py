"""Drawn pictures, the small pipelines that are trained on them, and metrics that compare pictures."""
