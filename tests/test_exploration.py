"""The record of tried places against a counter."""

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.exploration import explored, rate, times_tried, unexplored


@given(st.integers(1, 20), st.data())
def test_places_are_counted_topology_by_topology(size, data):
    topologies = data.draw(st.lists(st.sets(st.integers(0, size - 1)), max_size=6))
    record, counter = unexplored(torch.device("cpu")), Counter()
    for topology in topologies:
        before = record.clone()
        longer = explored(record, torch.tensor(sorted(topology), dtype=torch.int64))
        assert torch.equal(record, before)
        record = longer
        counter.update(topology)
    assert record[0].tolist() == sorted(counter)
    assert record[1].tolist() == [counter[place] for place in sorted(counter)]
    first = data.draw(st.integers(0, size - 1))
    count = data.draw(st.integers(0, size - first))
    assert times_tried(record, first, count).tolist() == [counter[i] for i in range(first, first + count)]
    for least in (1, 2):
        assert rate(record, size, least) == sum(n >= least for n in counter.values()) / size
