"""Train a little: few parameters, updates that keep every zero, and a merge that leaves an ordinary model.

- :mod:`openwork.finetune.lora`: low-rank updates of sparse weights, and what becomes of the zeros when they are merged;
  :mod:`openwork.finetune.adapters`: those of a whole model.
- :mod:`openwork.finetune.roles`: the matrices of a transformer's block by their usual names, and what is inside fused ones.
- :mod:`openwork.finetune.subsets`: biases, norms, the head: the few parameters that repair most of the damage.
- :mod:`openwork.finetune.course`: the optimizer's way through the steps.
- methods: :mod:`~openwork.finetune.perp`, :mod:`~openwork.finetune.perp_blocks` after pruning; :mod:`~openwork.finetune.s2ft`,
  :mod:`~openwork.finetune.sara` train parts in place (:mod:`openwork.thawing`); :mod:`~openwork.finetune.adamr` stays near
  the base.
"""
