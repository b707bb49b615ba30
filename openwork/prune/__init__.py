"""Dense to sparse at once: a method a page. They work through :func:`openwork.sparsify_`."""
