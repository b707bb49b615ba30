"""Save and load: one safetensors file with a JSON header, readable without openwork.

- :mod:`openwork.files.header`: what the JSON says.
- :mod:`openwork.files.container`: the safetensors file itself: written whole or not at all, checked before
  it is believed.
- :mod:`openwork.files.names`: a model seen under its plain names, whatever stores its weights.
- :mod:`openwork.files.writing`, :mod:`openwork.files.reading`: :func:`save` and :func:`load`.
- :mod:`openwork.files.coded`: layers of codes where the model has ordinary ones.
- :mod:`openwork.files.checkpoint`: a training run, to be continued.
- :mod:`openwork.files.delta`: a fine-tuned model as a thin file, for whoever has its base.
- :mod:`openwork.files.report`: :func:`inspect`.
"""

from openwork.durable import FileError
from openwork.files.checkpoint import load_checkpoint, save_checkpoint
from openwork.files.reading import load, load_masks
from openwork.files.report import Report, inspect
from openwork.files.writing import export_dense, save

__all__ = [
    "FileError",
    "Report",
    "export_dense",
    "inspect",
    "load",
    "load_checkpoint",
    "load_masks",
    "save",
    "save_checkpoint",
]
