"""How good an architecture is: by training, shared weights or cheap estimates; and how sure that is.

Begin with `trained`; `benchmarks` are published tables, on which `replay` repeats whole searches.
"""
