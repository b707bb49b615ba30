"""Data-parallel training: every process holds the same topology.

Nothing is sent around to achieve that. All processes draw from generators of the same seed and rank gradients that were
averaged first, so they take the same decisions; what is compared is one 64-bit digest a parameter. Any launcher and any
averaging of gradients will do, as long as ``torch.distributed`` is initialised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, distributed


def count() -> int:
    """How many processes train together; 1 where ``torch.distributed`` is not in use."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()


def averaged(tensor: Tensor) -> Tensor:
    """The mean of a tensor over the processes of a data-parallel run, so that all of them take the same decisions; the tensor
    itself where there is one process."""
    if count() == 1:
        return tensor
    total = tensor.contiguous().clone()
    distributed.all_reduce(total)
    return total / count()


def require_agreement(digests: Mapping[str, int], when: str, device: torch.device) -> None:
    """Prove that all processes have the same connections, with one small message.

    Args:
        digests: parameter name -> :func:`digest` of its positions; the same parameters in the same order everywhere.
        when: for the error, such as "at step 100".
        device: one that the processes can send tensors from.

    Raises:
        RuntimeError: in every process, naming the parameters and the processes that differ from the first.
    """
    processes = count()
    if processes == 1 or not digests:
        return
    own = torch.tensor(list(digests.values()), device=device)
    everyone = [torch.empty_like(own) for _ in range(processes)]
    distributed.all_gather(everyone, own)
    differs = torch.stack(everyone) != everyone[0]
    if bool(differs.any()):
        wrong = [name for name, column in zip(digests, differs.any(0).tolist(), strict=True) if column]
        ranks = differs.any(1).nonzero().flatten().tolist()
        raise RuntimeError(
            f"{when}, the processes of this run have different connections in {', '.join(wrong)}: rank "
            f"{', '.join(map(str, ranks))} differs from rank 0. Start all of them with the same weights (wrap the model in "
            "DistributedDataParallel before attaching), the same method and the same seed"
        )


def digest(positions: Tensor) -> int:
    """A signed 64-bit number made from positions, the same on every machine."""
    content = positions.cpu().contiguous().numpy().data
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)
