"""The matrix of features and pipelines: what users do to a pipeline, done to two equal ones, one run by an engine."""
