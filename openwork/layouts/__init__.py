"""How a sparse weight is stored, and the modules that hold one.

- :mod:`openwork.layouts.csr`: which connections a matrix keeps; the form everything else is derived from.
- :mod:`openwork.layouts.bitmask`: one bit a position, for files.
- :mod:`openwork.layouts.stored`: the arrays that hold one tensor in a file, whichever layout is smallest.
- :mod:`openwork.layouts.linear`, :mod:`openwork.layouts.conv`: a linear layer and a convolution that own only their kept
  weights; :mod:`openwork.layouts.layer`: what they have in common.
- :mod:`openwork.layouts.group_int4`: a linear layer for inference whose weight is groups of 4-bit codes.
- :mod:`openwork.layouts.layout`, :mod:`openwork.layouts.conv_layout`: forms of a weight for inference, which
  :func:`openwork.pack_` chooses from.
"""
