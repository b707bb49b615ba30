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
