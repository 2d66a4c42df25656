"""Weight sharing: all architectures of a space in one supernet, searched by gradients or by sampling."""
