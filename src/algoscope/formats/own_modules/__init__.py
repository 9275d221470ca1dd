"""A PyTorch module of any style, read from what it computes, converted into our transformer, and compared with it."""
