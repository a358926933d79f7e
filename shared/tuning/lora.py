"""LoRA: tune a model by adding a product of two thin matrices to each of its large ones, which stay as they are.

Source: "LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al., 2021), section 4.1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared.errors import CourseError


class LoRALinear(nn.Module):
    """A frozen linear layer W plus a trainable update of low rank: x (..., in) -> (..., out).

    out = W x + (alpha / rank) B A x with A (rank, in) random and B (out, rank) zero: at the start nothing changes.
    Dividing by the rank keeps the size of a step about the same for every rank.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        if not 1 <= rank <= min(base.weight.shape):
            raise CourseError(f"rank {rank} is out of range: use 1 to {min(base.weight.shape)} for this matrix")
        self.base, self.scale = base, alpha / rank
        self.A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * (x @ self.A.T @ self.B.T)  # (..., out), by way of (..., rank)


def merged_weight(layer: LoRALinear) -> Tensor:
    """The one matrix (out, in) that does what the layer and its update do together."""
    return layer.base.weight + layer.scale * layer.B @ layer.A  # (out, in)


def add_lora(model: nn.Module, rank: int, alpha: float, where: Sequence[str] = ("qkv", "out")) -> None:
    """Freeze the model and give each of its linear layers whose name is in `where` an update of that rank, in place.

    The default is attention's matrices. Raises CourseError when no layer has such a name.
    """
    layers = [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear) and name in where
    ]
    if not layers:
        raise CourseError(f"the model has no linear layer named {' or '.join(where)}: look at its named_modules()")
    model.requires_grad_(False)
    for module, name, layer in layers:
        setattr(module, name, LoRALinear(layer, rank, alpha))


def merge_lora(model: nn.Module) -> None:
    """Write every update into the matrix that it belongs to, in place: the model is as it was built, and as fast."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoRALinear):
                with torch.no_grad():
                    child.base.weight.copy_(merged_weight(child))
                setattr(module, name, child.base)
    model.requires_grad_(True)


def lora_weights(model: nn.Module) -> dict[str, Tensor]:
    """What has been learnt, and all that has to be stored: the tensors A and B of each update, by name."""
    return {name: tensor for name, tensor in model.state_dict().items() if name.endswith((".A", ".B"))}
