"""Keeps zeros zero while any optimizer trains the model, and lets a method move them.

The model stays an ordinary PyTorch model: pruned weights are exact zeros (or do not exist, in layers that hold only their
kept connections), ``state_dict`` has its usual keys, and the training loop is the user's own. Two lines are added::

    sparsifier = ow.attach(model, optimizer, ow.RigL(sparsity=0.9, steps=10_000))
    ...
    torch.save({"sparsifier": sparsifier.state_dict(), ...})

The sparsifier hangs on public hooks only: of the optimizer's step and of gradient accumulation. Nothing is patched.

- :mod:`.contract`: what a method that works during training is, and when it is called;
- :mod:`.attaching`: model, optimizer and method become a sparsifier;
- :mod:`.sparsifier`: what it does before and after each step, and what it saves;
- :mod:`.resuming`: which saved states are refused;
- :mod:`.optimizers`: under which wrapper an optimizer is, and the hooks around its step;
- :mod:`.data_parallel`, :mod:`.copies`: several processes train the model, copies of it take every change.
"""

from openwork.sparsifier.attaching import attach
from openwork.sparsifier.contract import Training
from openwork.sparsifier.sparsifier import Sparsifier, SparsifierWarning

__all__ = ["Sparsifier", "SparsifierWarning", "Training", "attach"]
