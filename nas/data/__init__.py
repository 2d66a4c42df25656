"""Images and labels: read, checked, divided and augmented. Begin with `task`, then `datasets`."""
