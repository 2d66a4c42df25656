"""Architectures and spaces as numbers, graphs and words: counted, encoded, probed, changed."""
