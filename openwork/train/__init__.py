"""Sparse while training: a method a page. They work through :func:`openwork.attach`."""
