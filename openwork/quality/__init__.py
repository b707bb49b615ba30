"""How good a model is, measured: the figure that stands beside its size and speed.

- :mod:`openwork.quality.perplexity`: of a model of language on a text.
- :mod:`openwork.quality.similarity`: of an encoder of sentences, against what people or another model say.
- :mod:`openwork.quality.harness`: the tasks of lm-eval.
"""

from openwork.quality.perplexity import Perplexity, perplexity
from openwork.quality.similarity import Agreement, cosine, embed, read_pairs, similarity

__all__ = ["Agreement", "Perplexity", "cosine", "embed", "perplexity", "read_pairs", "similarity"]
