"""The whole job: settings, phases, the last training."""
