"""What each operator costs: estimated, looked up or measured."""
