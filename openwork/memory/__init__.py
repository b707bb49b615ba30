"""How much memory will training take? Dense, under masks, and holding only the kept connections; before anything is trained.

- ``course``: what is in memory at each moment of a step.
- ``prediction``: what each form of training takes, added up.
"""

from openwork.memory.prediction import FORMS, Bytes, Form, Memory, index_bytes, moments, training_memory

__all__ = ["FORMS", "Bytes", "Form", "Memory", "index_bytes", "moments", "training_memory"]
