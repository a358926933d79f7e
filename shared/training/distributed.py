"""Several processes that train one model together, each on its share of every batch (data parallelism).

`torchrun --nproc_per_node 2 ...` starts the processes; without it there is one, and every function here does nothing.
"""

import torch
import torch.distributed
from torch import Tensor


def is_distributed() -> bool:
    """Whether a group of processes was set up with `torch.distributed.init_process_group`."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    """The number of this process, from 0."""
    return torch.distributed.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes there are."""
    return torch.distributed.get_world_size() if is_distributed() else 1


def sum_over_ranks(tensors: list[Tensor]) -> None:
    """Replace each tensor, in place, by its sum over all processes."""
    if is_distributed():
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)
