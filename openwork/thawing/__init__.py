"""Fine-tunes parts of the weights in place, all else frozen.

part = ow.thaw_(model, ow.S2FT(shares={"down": 0.03}))
optimizer = torch.optim.AdamW(part.parameters(), lr=2e-4)     # state of the size of the parts
part.attach(optimizer)
...                                                           # the user's loop
part.merge_()                                                 # a plain model; nothing was added

- :mod:`.contract`: what a method answers;
- :mod:`.part`: rows, columns or single places;
- :mod:`.weight`: a frozen weight with a part that is trained;
- :mod:`.thaw`: the verb, and what is saved of it.
"""

from openwork.thawing.contract import Thawing
from openwork.thawing.part import Part, Scatter, Slice
from openwork.thawing.thaw import Thawed, thaw_

__all__ = ["Part", "Scatter", "Slice", "Thawed", "Thawing", "thaw_"]
