"""How good an architecture is: by training, shared weights or cheap estimates; and how sure that is."""
