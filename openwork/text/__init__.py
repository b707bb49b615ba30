"""Text: what trained models of language are calibrated with and judged by.

- :mod:`openwork.text.documents`: texts from a file, or from a data set of the Hugging Face hub.
- :mod:`openwork.text.windows`: random windows of tokens, and padded batches of short texts.
"""

from openwork.text.documents import documents
from openwork.text.windows import batches, windows

__all__ = ["batches", "documents", "windows"]
