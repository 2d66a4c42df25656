"""Files and folders that survive kills, and texts from outside."""
