"""Files and folders that survive kills, and texts from outside. Begin with `atomic`, then `folder`."""
