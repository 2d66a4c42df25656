"""Search spaces, and what can be said of their architectures without training one; begin with `space`."""
