"""How dense each layer of a trained network stays, from what its weights and its inputs look like.

An allocation of :mod:`openwork.allocation` knows shapes or the scores of single connections. These look at a whole layer first
and make a number of it, or a few; then they know the numbers of all layers. Give one to a calibrated method:
``ow.Wanda(sparsity=0.7, allocation=ow.OWL())``. The total is exact whatever the numbers are.

- :mod:`.outliers`: more outliers among the scores, denser;
- :mod:`.spectra`: heavier tails of the spectrum, denser;
- :mod:`.redundancy`: outputs that other layers give as well, sparser;
- :mod:`.fluctuation`: the inputs of all layers ranked together.
"""

from openwork.layer_allocation.contract import LayerAllocation, OneNumber, Seen
from openwork.layer_allocation.fluctuation import Fluctuation
from openwork.layer_allocation.outliers import OWL
from openwork.layer_allocation.redundancy import Redundancy
from openwork.layer_allocation.spectra import AlphaPruning

__all__ = ["OWL", "AlphaPruning", "Fluctuation", "LayerAllocation", "OneNumber", "Redundancy", "Seen"]
