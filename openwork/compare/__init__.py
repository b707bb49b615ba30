"""Run methods against each other fairly, and print what came out: wins and losses.

- :mod:`openwork.compare.machine`: what was it measured on.
- :mod:`openwork.compare.measure`: bytes of a model in training and at rest; time, dense against packed.
- :mod:`openwork.compare.table`: one row a method, as a table for people or as JSON for programs.
- :mod:`openwork.compare.contest`: the same network trained by several methods, at equal cost.
- :mod:`openwork.compare.proof`: saved, loaded, packed and timed.
- :mod:`openwork.compare.standings`: who has done how well so far.
- :mod:`openwork.compare.record`: the files a run leaves behind, whole at every moment.
- :mod:`openwork.compare.charts`, :mod:`openwork.compare.report`: the same as one HTML page.
- :mod:`openwork.compare.breakeven`, :mod:`openwork.compare.roofline`, :mod:`openwork.compare.curves`: layers, from which
  sparsity on sparse wins, and how near to the limits of the machine.
- :mod:`openwork.compare.comparison`: every method beside the naive baselines, at equal size and cost, for
  ``openwork compare``; :mod:`openwork.compare.field` says who takes part, :mod:`openwork.compare.perceptrons` with which
  networks, :mod:`openwork.compare.ledger` what is finished.
- :mod:`openwork.compare.demo`: the contest of ``openwork demo``.
"""
