"""Search spaces, and what can be said of their architectures without training one.

Begin with `space`, then `choosers`: one `build(choose)` lists decisions, builds networks and the supernet.
"""
