"""How long each trial is trained, and which go on."""
