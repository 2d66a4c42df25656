"""The time of a job: measured ahead, divided, kept to."""
