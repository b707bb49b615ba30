"""One layer as the engine would hand it to a stage."""

import dataclasses

import torch

from openwork.calibrator import Layer
from openwork.patterns import pattern
from openwork.statistics import Statistics
from tests.reconstruction.layers import layer as drawn


def given(seed=0, *, sparsity=0.5, form="unstructured", mask=None, weight=None, bias=None, **options):
    """``(layer, X)``: a random layer in float64 with the statistics of its inputs."""
    w, x = drawn(seed, **options)
    statistics = Statistics(w.shape[1], gram=True, dtype=torch.float64)
    for part in x.split(37):
        statistics.add(part)
    mask = torch.ones_like(w, dtype=torch.bool) if mask is None else mask
    return (
        Layer(
            name="layer",
            shape=tuple(w.shape),
            dense=w,
            weight=(w if weight is None else weight) * mask,
            mask=mask,
            dense_bias=bias,
            bias=bias,
            statistics=statistics,
            pattern=pattern(form),
            kept=round((1 - sparsity) * w.numel()),
        ),
        x,
    )


def with_inputs(layer, x, **changes):
    """The same layer, reading ``x`` instead."""
    s = Statistics(x.shape[1], gram=True, dtype=torch.float64)
    s.add(x)
    return dataclasses.replace(layer, statistics=s, **changes)
