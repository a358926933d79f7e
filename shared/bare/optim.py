"""Optimisers and schedules: from a gradient to the next value of every weight, in place.

A weight's update takes a handful of passes over arrays of its size. They are written into the arrays at hand and into
one scratch array, so that a step asks the system for no new memory.
"""

import math
from collections.abc import Iterable

import numpy as np

from shared.bare.tensor import Tensor
from shared.errors import CourseError


def sgd_step(data: np.ndarray, gradient: np.ndarray, velocity: np.ndarray | None, lr: float, momentum: float) -> None:
    """One step downhill, in place: data -= lr * velocity, with velocity = momentum * velocity + gradient.

    All arrays have one shape; without a velocity it is the gradient alone. The gradient is used as scratch space.
    Source: Sutskever et al. (2013), "On the importance of initialization and momentum in deep learning", section 2.
    """
    if velocity is not None:
        velocity *= momentum
        velocity += gradient
        np.copyto(gradient, velocity)
    gradient *= lr
    data -= gradient


class SGD:
    """Stochastic gradient descent with momentum over named weights; `step()` uses up their gradients."""

    def __init__(self, parameters: dict[str, Tensor], lr: float, momentum: float = 0.0) -> None:
        self.parameters, self.lr, self.momentum = parameters, lr, momentum
        self.velocities = {name: np.zeros_like(tensor.data) for name, tensor in parameters.items() if momentum}

    def step(self) -> None:
        """Update every weight that has a gradient, and take the gradient away."""
        for name, tensor in self.parameters.items():
            if tensor.grad is not None:
                sgd_step(tensor.data, tensor.grad, self.velocities.get(name), self.lr, self.momentum)
                tensor.grad = None


def adamw_step(
    data: np.ndarray,
    gradient: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    step: int,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """One AdamW update, in place, of a weight and of the running averages of its gradient and of the square of it.

    All arrays have one shape; the gradient is used as scratch space. step counts from 1: the averages start at 0, so
    after few steps they are too small by the factor 1 - beta**step, which is divided out. The decay acts on the weight
    itself and not through the gradient. Source: Loshchilov and Hutter (2019), "Decoupled Weight Decay
    Regularization", algorithm 2.
    """
    beta1, beta2 = betas
    if weight_decay:
        data *= 1 - lr * weight_decay
    gradient *= 1 - beta1
    mean *= beta1
    mean += gradient
    gradient *= gradient  # (1 - beta1)^2 times the square: the factor is taken back below
    gradient *= (1 - beta2) / (1 - beta1) ** 2
    square *= beta2
    square += gradient
    size = np.sqrt(square, out=gradient)
    size /= math.sqrt(1 - beta2**step)
    size += eps
    update = np.divide(mean, size, out=size)
    update *= lr / (1 - beta1**step)
    data -= update


def parameter_groups(parameters: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Every weight of a GPT in exactly one of three groups.

    "embeddings": tables that are looked up by number (the output layer is one of them); "vectors": biases and gains;
    "matrices": the rest, the weights inside the blocks.
    """
    groups: dict[str, dict[str, Tensor]] = {"matrices": {}, "embeddings": {}, "vectors": {}}
    for name, tensor in parameters.items():
        kind = "embeddings" if "embedding" in name else "vectors" if tensor.data.ndim < 2 else "matrices"
        groups[kind][name] = tensor
    return groups


class AdamW:
    """`adamw_step` for every weight; `step()` uses up the gradients. Only the matrices inside the blocks decay.

    Pulling a gain towards 0, or a rare word's embedding away from where it was put, would gain nothing.
    """

    def __init__(
        self,
        parameters: dict[str, Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.parameters, self.lr, self.betas, self.eps = parameters, lr, betas, eps
        decaying = parameter_groups(parameters)["matrices"]
        self.decay = {name: weight_decay if name in decaying else 0.0 for name in parameters}
        self.means = {name: np.zeros_like(tensor.data) for name, tensor in parameters.items()}
        self.squares = {name: np.zeros_like(tensor.data) for name, tensor in parameters.items()}
        self.steps = 0

    def step(self) -> None:
        """Update every weight that has a gradient, and take the gradient away."""
        self.steps += 1
        for name, tensor in self.parameters.items():
            if tensor.grad is None:
                continue
            adamw_step(
                tensor.data,
                tensor.grad,
                self.means[name],
                self.squares[name],
                self.steps,
                lr=self.lr,
                betas=self.betas,
                eps=self.eps,
                weight_decay=self.decay[name],
            )
            tensor.grad = None


def learning_rate_at(
    step: int, *, peak: float, steps: int, warmup: int, decay: int | None = None, floor: float = 0.0
) -> float:
    """The learning rate at `step` of `steps`, counted from 0.

    It rises in a straight line to `peak` at step `warmup`. Then it falls along half a cosine to floor * peak at the
    end; or, with `decay`, stays at the peak and falls in a straight line during the last `decay` steps. Sources:
    Loshchilov and Hutter (2017), "SGDR: Stochastic Gradient Descent with Warm Restarts", without restarts; Hu et al.
    (2024), "MiniCPM: Unveiling the Potential of Small Language Models", section 4.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if decay is None:
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        factor = min(1.0, max(0, steps - step) / max(1, min(decay, steps - warmup)))
    return peak * (floor + (1 - floor) * factor)


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients together, in place, so that their common norm is at most max_norm; return the norm before.

    The norm is that of one long vector of all gradients, so the direction of the step stays as it is.
    Source: Pascanu, Mikolov and Bengio (2013), "On the difficulty of training recurrent neural networks", section 3.2.
    """
    if max_norm <= 0:
        raise CourseError(f"max_norm is {max_norm}: use a number above 0, math.inf for no clipping")
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = math.sqrt(sum(float(np.dot(gradient.reshape(-1), gradient.reshape(-1))) for gradient in gradients))
    factor = max_norm / (norm + 1e-6)
    if factor < 1:
        for gradient in gradients:
            gradient *= factor
    return norm
