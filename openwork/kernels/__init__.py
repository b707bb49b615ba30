"""How a sparse weight is computed: native CPU kernels, each with a plain PyTorch twin in `reference`.

The kernels take plain contiguous tensors and know nothing of modules. They are PyTorch operators
(`torch.ops.openwork.*`), so autograd and `torch.compile` work through them. A page a kernel:

- `index`: the walk a sparse matrix is computed in, made once per topology (`prepare`)
- `linear`: `Y = activation(X W^T + b)` and its gradients; `products` the native calls of it, `linear_operators` as operators of
  PyTorch, `execution` who computes a call
- `conv`, `planes`: the same for convolutions, and how they see images (`conv_index`, `conv_operators`,
  `conv_product`: what they walk, differentiate and call); `frozen_conv`, `block_conv`: for
  inference, one by one or in blocks of channels; `depthwise`: where channels are kept apart
- `tiles`: `linear` for activations that stay in feature-major tiles
- `gradient`: the dense gradient at some positions; `ranking`: the largest of very many scores, tile by tile
- `slices`, `small_batch`, `bitmasked`: inference with 1 to 16 samples, each with a layout of its own
- `squares`: inference with few samples and weights in blocks of 4 x 4
- `pairs`: inference in bfloat16 with 16 samples and more
- `code_groups`, `group_int4`, `group_int8`: inference with groups of 4-bit or 8-bit codes, some of them absent
- `inference`, `pages`: what these have in common; memory with large pages
- `reference`: what all of these mean
- `native`: the compiled library and its instruction set levels

Inputs must be finite only where they matter: a pruned connection is never touched, so NaN or infinity in an
input reaches only the outputs that are connected to it (a dense product would give `0 * nan = nan`
everywhere).
"""

from openwork.kernels.native import isa

__all__ = ["isa"]
