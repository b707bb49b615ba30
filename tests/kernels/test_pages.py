import mmap

import pytest
import torch

from openwork.kernels.pages import LARGE_PAGE, in_large_pages


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no large pages to ask for")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint16, torch.int64])
def test_contents_shape_and_dtype_stay_and_the_start_is_aligned(dtype):
    tensor = torch.arange(LARGE_PAGE + 24).to(dtype).view(-1, 8)
    copy = in_large_pages(tensor)
    assert copy.data_ptr() % LARGE_PAGE == 0
    assert copy.is_contiguous()
    assert copy.dtype == dtype
    assert torch.equal(copy.view(torch.uint8), tensor.view(torch.uint8))


def test_small_tensors_stay_where_they_are():
    tensor = torch.zeros(LARGE_PAGE // 4 - 1)
    assert in_large_pages(tensor) is tensor


def test_systems_without_large_pages_keep_the_tensor(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    tensor = torch.zeros(LARGE_PAGE)
    assert in_large_pages(tensor) is tensor
