"""Random layers with asymmetric, correlated inputs in float64, as the solvers' tests want them."""

import torch


def layer(seed=0, out=13, inputs=22, tokens=200, dead=0, shift=0.0):
    """``W [out, in]``, ``X [tokens, in]`` with unequal scales and correlated columns; the first ``dead`` inputs are zero."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, inputs, generator=g, dtype=torch.float64)
    x = x @ torch.randn(inputs, inputs, generator=g, dtype=torch.float64) + shift
    x = x * torch.logspace(-0.7, 0.7, inputs, dtype=torch.float64)
    x[:, :dead] = 0
    return torch.randn(out, inputs, generator=g, dtype=torch.float64), x


def random_mask(w, seed=0, share=0.5):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(w.shape, generator=g) < share
