"""Several fine-tuned models in one, or one as its base and a thin delta.

- methods: :mod:`~openwork.merging.task_arithmetic`, :mod:`~openwork.merging.ties`, :mod:`~openwork.merging.dare`.
- :mod:`openwork.merging.rescaling`: by what to divide the changes that DARE keeps.
- :mod:`openwork.merging.inputs`: what layers read, so that a change counts for what it does.
"""
