"""Small networks as shapes, and the allocations to try on them."""

import math

from hypothesis import strategies as st

LENET = [(300, 784), (100, 300), (10, 100)]
CONVS = [(16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3), (10, 64)]
NAMES = ["uniform", "er", "erk", "balanced", "pyramid", "global", "lamp", "deviation"]
shape = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 30)),
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3)),
)


def sizes(shapes):
    return [math.prod(s) for s in shapes]
