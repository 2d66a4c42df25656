"""How fast the engine is: what is timed, each path beside the plain one and a floor, and tables of it."""
