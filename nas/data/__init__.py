"""Images and labels: read, checked, divided and augmented."""
