"""New weights for a layer that must lose some: what is left makes up for what is gone.

Notation of every page: a layer computes ``Y = X W^T`` with ``W [out, in]`` and calibration inputs ``X [tokens, in]``, and
``H = X^T X``. A change ``D`` of the weights costs ``E(D) = tr(D H D^T) = ||X D^T||^2``. For a mask that is given, each row of
``W`` is a least-squares problem of its own, and all pages solve the same one:

- :mod:`.least_squares` exactly, one factorisation for each distinct mask of a row: the optimum, and the oracle of the tests;
- :mod:`.gradient` by conjugate gradients restricted to the mask, with no factorisation at all;
- :mod:`.sweep` by the column sweep of SparseGPT and GPTQ: one factorisation for all rows, each error pushed on to the columns
  that are still to come; it may choose the mask and quantise on its way;
- :mod:`.admm` by alternating directions: one factorisation for all rows, converges to the optimum, and may choose the mask
  gradually.

Functions of tensors; nothing is changed in place. Numbers are the dtype of ``weight``, factorisations float64 where the layer is
not too wide for that.
"""
