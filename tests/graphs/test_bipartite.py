"""Link prediction and dead ends against the sums and searches they stand for."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.graphs import ch3_l3, without_dead_ends


def random_graph(outputs, inputs, density, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(outputs, inputs, generator=g) < density


def node_by_node(a):
    """CH3-L3 as one would write it down from the paper, link by link."""
    outputs, inputs = len(a), len(a[0])
    of_output = [{u for u in range(inputs) if a[i][u]} for i in range(outputs)]
    of_input = [{i for i in range(outputs) if a[i][u]} for u in range(inputs)]
    scores = [[0.0] * inputs for _ in range(outputs)]
    for i, t in itertools.product(range(outputs), range(inputs)):
        for j in of_input[t] - {i}:
            if shared := len(of_output[i] & of_output[j]):
                scores[i][t] += 1 / (1 + max(len(of_output[j]) - shared - 1, 0))
        for u in of_output[i] - {t}:
            if shared := len(of_input[t] & of_input[u]):
                scores[i][t] += 1 / (1 + max(len(of_input[u]) - shared - 1, 0))
    return torch.tensor(scores, dtype=torch.float64)


@given(st.integers(1, 7), st.integers(1, 8), st.floats(0, 1), st.integers(0, 1000))
def test_the_matrix_form_is_the_sum_over_nodes(outputs, inputs, density, seed):
    a = random_graph(outputs, inputs, density, seed)
    scores = ch3_l3(a)
    torch.testing.assert_close(scores, node_by_node(a.tolist()), rtol=1e-12, atol=1e-12)
    assert (scores >= 0).all()
    torch.testing.assert_close(ch3_l3(a.T), scores.T)


def test_isolated_units_score_nothing():
    a = random_graph(9, 11, 0.4, 3)
    a[4], a[:, 7] = False, False
    scores = ch3_l3(a)
    assert (scores[4] == 0).all()
    assert (scores[:, 7] == 0).all()
    assert scores.sum() > 0


def test_the_missing_corner_of_a_square_is_the_likeliest_link():
    a = torch.zeros(4, 5, dtype=torch.bool)
    a[0, 0] = a[0, 1] = a[1, 0] = a[3, 4] = True  # 1 - 1 would close the square
    scores = ch3_l3(a).masked_fill(a, 0)
    assert scores.argmax().item() == 1 * 5 + 1
    assert int((scores > 0).sum()) == 1


@given(st.lists(st.integers(1, 5), min_size=2, max_size=5), st.floats(0.1, 0.8), st.integers(0, 1000))
def test_what_is_left_lies_on_a_path(sizes, density, seed):
    layers = [random_graph(o, i, density, seed + n) for n, (i, o) in enumerate(itertools.pairwise(sizes))]
    before = [layer.clone() for layer in layers]
    left = without_dead_ends(layers)
    used = [torch.zeros_like(layer) for layer in layers]
    for path in itertools.product(*(range(size) for size in sizes)):
        steps = list(itertools.pairwise(path))
        if all(layers[n][o, i] for n, (i, o) in enumerate(steps)):
            for n, (i, o) in enumerate(steps):
                used[n][o, i] = True
    for n in range(len(layers)):
        assert torch.equal(left[n], used[n])
        assert torch.equal(layers[n], before[n])


def test_one_layer_has_no_dead_ends():
    a = random_graph(3, 4, 0.3, 0)
    assert torch.equal(without_dead_ends([a])[0], a)
    assert without_dead_ends([]) == []
