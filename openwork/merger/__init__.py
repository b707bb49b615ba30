"""Puts what several fine-tunings have learned into one model: deltas, thinned, then added up.

done = ow.merge_(base, [tuned_a, tuned_b], ow.DARE(sparsity=0.9))
print(done)                                     # parameter by parameter: what is left of each delta

- :mod:`.contract`: what a method that merges answers;
- :mod:`.matching`: the same parameters in every model, or a refusal that names the first that is not;
- :mod:`.thinning`: one model's delta, thinned parameter by parameter;
- :mod:`.merge`: all of them added to the base.
"""

from openwork.merger.contract import Merging
from openwork.merger.merge import Merged, MergedRow, merge_

__all__ = ["Merged", "MergedRow", "Merging", "merge_"]
