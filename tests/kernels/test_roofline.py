import torch

from openwork.kernels import native


def test_reads_what_is_there(level):
    for threads in (1, 2):
        x, sums = torch.arange(threads * 256).float(), torch.full((threads, 16), -1.0)
        native.kernels().most_reads(x.data_ptr(), 256, 3, sums.data_ptr(), threads)
        assert torch.equal(sums.sum(1), 3 * x.view(threads, 256).sum(1))


def test_multiplies_and_adds_as_often_as_it_says(level):
    sums = torch.zeros(3, 16)
    native.kernels().most_multiply_adds(192 * 40, sums.data_ptr(), 3)
    torch.testing.assert_close(sums, torch.full((3, 16), 2.0))  # the fixed point of s / 2 + 1


def test_hands_a_line_back_and_forth(level):
    lines = torch.zeros(64, dtype=torch.int32)
    native.kernels().most_handovers(lines.data_ptr(), 50)
    assert lines[32] in (1, 2)  # as many threads as the runtime granted
    assert lines[0] == (100 if lines[32] == 2 else 0)
    assert lines.count_nonzero() == 1 + (lines[32] == 2)
