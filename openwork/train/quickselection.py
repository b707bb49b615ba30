"""QuickSelection: SET on an autoencoder, whose connections gather at the inputs that matter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from openwork.allocation import Allocation
from openwork.method import method
from openwork.positions import located
from openwork.schedules import Scalar, value_at
from openwork.sparsifier import Sparsifier
from openwork.train.set import SET


@method(
    paper="Atashgahi et al., Quick and Robust Feature Selection: the Strength of Energy-efficient Sparse Training for "
    "Autoencoders, Machine Learning 2022, arXiv 2012.00560",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class QuickSelection(SET):
    """SET that knows how strong each input is: where the connections of a sparse autoencoder stay, there is information.

    Training is that of SET. At any time the strength of input ``j`` of a layer is taken over the links that would survive the
    next drop, so that those just grown at random, which say nothing, do not count::

        s_j = sum over surviving links (i, j) of |w_ij|

    :func:`openwork.select_features` trains a denoising autoencoder in this way, and returns the inputs of largest strength.

    Args:
        drop: 0.2 (zeta), as in the paper.
        allocation: ``er``, as in the paper.
    """

    drop: Scalar = 0.2
    allocation: str | Allocation = "er"

    def strength(self, sparsifier: Sparsifier, name: str) -> Tensor:
        """``[in]``: how strong each input of one parameter is now. Nothing is changed.

        Raises:
            KeyError: the sparsifier does not cover a parameter of that name.
        """
        c = sparsifier.connections[name]
        survivors = self.survivors(c, value_at(self.drop, sparsifier.step_count, self.run_length))
        inputs, taps = c.weight.shape[1], c.numel // (c.weight.shape[0] * c.weight.shape[1])
        links = c.grid.positions_of(c.atoms()[survivors])
        values = c.values.detach().abs()[located(c.positions, links)[0]]
        return values.new_zeros(inputs).index_add_(0, links // taps % inputs, values)
