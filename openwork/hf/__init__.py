"""Models of Hugging Face: read from a folder, written to one, dense with zeros or as small as the zeros allow.

Importing this package teaches transformers to read the second kind::

    import openwork.hf
    model = AutoModelForCausalLM.from_pretrained("out")  # linear layers hold, train and multiply kept weights only

- :mod:`openwork.hf.folder`: :func:`save` and :func:`load`.
- :mod:`openwork.hf.storage`: how transformers reads and writes sparse layers.
- :mod:`openwork.hf.compression`: :func:`compress`, from one folder to another; :mod:`openwork.hf.judge` measures quality.
- :mod:`openwork.hf.adapters`: :func:`merge_adapters_` merges LoRA updates of peft and keeps every zero.
- :mod:`openwork.hf.merging`: :func:`merge`, several fine-tuned models in one folder, and the thin delta of one in a file.
- :mod:`openwork.hf.card`: the page that tells what was done to a model, and how good, small and fast it is.
"""

from openwork.extras import require

require("transformers", extra="hf", to="read and write Hugging Face folders")

from openwork.hf.adapters import merge_adapters_  # noqa: E402
from openwork.hf.card import Card  # noqa: E402
from openwork.hf.compression import Compressed, Data, compress  # noqa: E402
from openwork.hf.folder import load, load_tokenizer, save  # noqa: E402
from openwork.hf.merging import MergedFolder, merge, write_delta  # noqa: E402
from openwork.hf.storage import SparseStorage, SparseStorageConfig  # noqa: E402

__all__ = [
    "Card",
    "Compressed",
    "Data",
    "MergedFolder",
    "SparseStorage",
    "SparseStorageConfig",
    "compress",
    "load",
    "load_tokenizer",
    "merge",
    "merge_adapters_",
    "save",
    "write_delta",
]
