"""Search spaces: the name a user types is the file's name and its function's name."""
