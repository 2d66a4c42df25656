"""Where the history of a run lives: the journal in its folder, or a database that is named by a URL."""
