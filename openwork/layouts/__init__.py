"""How a sparse weight is stored, and the modules that hold one.

- :mod:`openwork.layouts.csr`: which connections a matrix keeps; the form everything else is derived from.
- :mod:`openwork.layouts.bitmask`: one bit a position, for files.
- :mod:`openwork.layouts.stored`: the arrays that hold one tensor in a file, whichever layout is smallest.
- :mod:`openwork.layouts.linear`, :mod:`openwork.layouts.conv`, :mod:`openwork.layouts.embedding`: a linear layer, a convolution
  and an embedding that own only their kept weights; :mod:`openwork.layouts.layer`: what they have in common, on three parts,
  indices from which kernels :mod:`~openwork.layouts.prepared` more, backward passes that are :mod:`~openwork.layouts.observed`,
  arrays :mod:`~openwork.layouts.resizable` to what is loaded.
- :mod:`openwork.layouts.group_int4`, :mod:`openwork.layouts.quantized`: linear layers for inference whose weight is codes, in
  groups that may be absent, or of whichever grid, with the :mod:`~openwork.layouts.outliers` that no grid takes.
- :mod:`openwork.layouts.layout`, :mod:`openwork.layouts.conv_layout`: forms of a weight for inference, which
  :func:`openwork.pack_` chooses from.
"""
