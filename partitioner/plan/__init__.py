"""The plan file, and what follows from a plan: programs and schedules."""
