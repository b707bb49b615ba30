"""How much memory will training take? Dense, under masks, and holding only the kept connections; before anything is trained.

- ``course``: what is in memory at each moment of a step.
- ``prediction``: what each form of training takes, added up.
- ``freed``: memory kept for the next tensors.
"""

from openwork.memory.freed import keep_freed_memory
from openwork.memory.prediction import FORMS, Bytes, Form, Memory, index_bytes, moments, training_memory

__all__ = [
    "FORMS",
    "Bytes",
    "Form",
    "Memory",
    "index_bytes",
    "keep_freed_memory",
    "moments",
    "training_memory",
]
