"""Optimisers and schedules: from a gradient to the next value of every weight.

The idea of each optimiser is one function on lists of tensors (`adamw_step`, `muon_step`); the class around it only
keeps the running averages. The `torch._foreach_` functions apply one operation to a whole list of tensors, which
saves a Python call per weight matrix.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from shared.training.device import native_bf16


def adamw_step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    step: int,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """One AdamW update, in place, of parameters and of the running averages of the gradient and of its square.

    The four lists hold tensors of equal shapes. step counts from 1: the averages start at 0, so after few steps they
    are too small by the factor 1 - beta**step, which is divided out. The decay acts on the weight itself and not
    through the gradient. Source: Loshchilov and Hutter (2019), "Decoupled Weight Decay Regularization", algorithm 2.
    """
    beta1, beta2 = betas
    torch._foreach_mul_(parameters, 1 - lr * weight_decay)
    torch._foreach_lerp_(means, gradients, 1 - beta1)  # mean = beta1 * mean + (1 - beta1) * gradient
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
    size = torch._foreach_sqrt(squares)
    torch._foreach_div_(size, math.sqrt(1 - beta2**step))
    torch._foreach_add_(size, eps)
    torch._foreach_addcdiv_(parameters, means, size, -lr / (1 - beta1**step))


def with_gradients(group: dict) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters of an optimiser's group that the last backward pass reached, and their gradients."""
    parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
    return parameters, [parameter.grad for parameter in parameters]


class AdamW(torch.optim.Optimizer):
    """AdamW as a PyTorch optimiser: `step()` applies `adamw_step` to every group of parameters."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters, gradients = with_gradients(group)
            if not parameters:
                continue
            for parameter in parameters:
                if parameter not in self.state:
                    self.state[parameter] = {"mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
            group["step"] += 1
            adamw_step(
                parameters,
                gradients,
                [self.state[parameter]["mean"] for parameter in parameters],
                [self.state[parameter]["square"] for parameter in parameters],
                group["step"],
                lr=group["lr"],
                betas=group["betas"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
            )


def newton_schulz(matrices: Tensor, iterations: int = 5) -> Tensor:
    """The nearly orthogonal matrix that points the same way: all singular values go to about 1, the vectors stay.

    matrices: (n, R, C), n matrices of one shape; returns (n, R, C). Each iteration applies the odd polynomial
    p(s) = a s + b s^3 + c s^5 to every singular value s, with matrix products only. The coefficients are the steep
    ones of Jordan et al. (2024), "Muon: An optimizer for hidden layers in neural networks": they lift small values
    fast and then leave them between about 0.7 and 1.2, near enough for an update. bfloat16 is exact enough for
    this, and is used where the device has it.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(torch.bfloat16 if native_bf16(matrices.device.type) else torch.float32)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT.contiguous()  # (n, C, R): the square matrices below are then the smaller of the two kinds
    # the Frobenius norm is at least the largest singular value, so this brings all of them into [0, 1]
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        square = x @ x.mT  # (n, R, R)
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)  # (n, R, R)
        x = torch.baddbmm(x, polynomial, x, beta=a)  # (n, R, C)
    if tall:
        x = x.mT  # (n, R, C)
    return x.to(matrices.dtype)


def muon_step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    *,
    lr: float,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
) -> None:
    """One Muon update, in place: momentum first, then the update of each matrix is made nearly orthogonal.

    All tensors are matrices (R, C); those of equal shape are stacked and orthogonalised together. The momentum is
    Nesterov's: it looks ahead by mixing the fresh gradient in once more. An orthogonal matrix has singular values 1
    whatever its shape, so a tall one (R > C) moves its output less than a square one; the factor
    sqrt(max(1, R / C)) makes up for it. Source of both: Jordan et al. (2024), as above.
    """
    torch._foreach_lerp_(momenta, gradients, 1 - momentum)
    updates = torch._foreach_lerp(gradients, momenta, momentum)
    same_shape = defaultdict(list)
    for index, update in enumerate(updates):
        same_shape[update.shape].append(index)
    for (rows, columns), members in same_shape.items():
        stacked = torch.stack([updates[index] for index in members])  # (n, R, C)
        orthogonal = newton_schulz(stacked)  # (n, R, C)
        members_parameters = [parameters[index] for index in members]
        torch._foreach_mul_(members_parameters, 1 - lr * weight_decay)
        torch._foreach_add_(members_parameters, orthogonal.unbind(), alpha=-lr * math.sqrt(max(1.0, rows / columns)))


class Muon(torch.optim.Optimizer):
    """Muon as a PyTorch optimiser, for the weight matrices inside the blocks: `step()` applies `muon_step`."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters, gradients = with_gradients(group)
            for parameter in parameters:
                if parameter not in self.state:
                    self.state[parameter] = {"momentum": torch.zeros_like(parameter)}
            muon_step(
                parameters,
                gradients,
                [self.state[parameter]["momentum"] for parameter in parameters],
                lr=group["lr"],
                momentum=group["momentum"],
                weight_decay=group["weight_decay"],
            )


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Every trainable parameter of a GPT in exactly one of four groups.

    "embeddings": tables that are looked up by number (a head that is tied to one of them is the same parameter and
    stays here); "head": the matrix to the vocabulary; "vectors": biases, gains and single numbers; "matrices": the
    rest, the weights inside the blocks. Muon is meant for the matrices, AdamW for everything.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "embeddings": [], "head": [], "vectors": []}
    for name, parameter in model.named_parameters():  # names a tied parameter once
        if not parameter.requires_grad:
            continue
        if id(parameter) in tables:
            groups["embeddings"].append(parameter)
        elif parameter.ndim < 2:
            groups["vectors"].append(parameter)
        elif "head" in name.split("."):
            groups["head"].append(parameter)
        else:
            groups["matrices"].append(parameter)
    return groups


def warmup_cosine(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """What to multiply the learning rate with at `step` of `steps`, counted from 0.

    It rises in a straight line to 1 at step `warmup`, then falls along half a cosine to `floor` at step `steps`.
    Source: Loshchilov and Hutter (2017), "SGDR: Stochastic Gradient Descent with Warm Restarts", without restarts.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_stable_decay(step: int, steps: int, warmup: int, decay: int, floor: float = 0.0) -> float:
    """Like `warmup_cosine`, but it stays at 1 and falls in a straight line during the last `decay` steps.

    Source: Hu et al. (2024), "MiniCPM: Unveiling the Potential of Small Language Models", section 4.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    remaining = min(1.0, max(0, steps - step) / max(1, min(decay, steps - warmup)))
    return floor + (1 - floor) * remaining


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients together so that their common norm is at most max_norm; returns the norm before, ().

    The norm is that of one long vector of all gradients, so the direction of the step stays as it is.
    Source: Pascanu, Mikolov and Bengio (2013), "On the difficulty of training recurrent neural networks", section 3.2.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
