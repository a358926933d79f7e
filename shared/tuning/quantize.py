"""Weights in a few bits each: whole numbers and one scale for every row, turned back into floats when they are used.

    quantize_model(model)  # a quarter of the bytes of every linear layer, and nearly the same answers

Sources: "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (Jacob et al.,
2018), section 2.1, here with zero point 0; "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale"
(Dettmers et al., 2022), section 2, absmax quantisation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import CourseError


def quantize_rows(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Round every row to whole numbers from -limit to limit, limit = 2^(bits - 1) - 1, with a scale of its own.

    weight (R, C), any float type; bits 2 to 8. Returns codes (R, C) int8 and scales (R, 1) float32, so that
    codes * scales is the weight, off by at most half a scale. A row's scale is its largest absolute value / limit.
    Raises CourseError for other bits, another shape, and a weight that is infinite or not a number.
    """
    if not 2 <= bits <= 8:
        raise CourseError(f"bits is {bits}: choose 2 to 8, for a code has to fit into an int8")
    if weight.ndim != 2:
        raise CourseError(f"the weight has the shape {tuple(weight.shape)}: give a matrix (rows, columns)")
    weight, limit = weight.float(), 2 ** (bits - 1) - 1
    if not weight.isfinite().all():
        raise CourseError("the weight holds an infinity or a nan: no scale fits; was the training sound?")
    scales = weight.abs().amax(dim=1, keepdim=True) / limit  # (R, 1)
    scales = scales.clamp(min=torch.finfo(weight.dtype).tiny)  # a row of zeros is not divided by zero
    return torch.round(weight / scales).to(torch.int8), scales


def dequantize_rows(codes: Tensor, scales: Tensor) -> Tensor:
    """The floats that the codes (R, C) stand for, with one scale for each row (R, 1): (R, C) float32."""
    return codes * scales


class QuantizedLinear(nn.Module):
    """A linear layer that stores codes and scales, and makes its matrix anew whenever it is used.

    x (..., in) -> (..., out), as the nn.Linear that it is made from. Nothing in it can be trained but the bias.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, base: nn.Linear, bits: int = 8) -> None:
        super().__init__()
        codes, scales = quantize_rows(base.weight.detach(), bits)
        self.register_buffer("codes", codes.contiguous())  # (out, in) int8
        self.register_buffer("scales", scales)  # (out, 1) float32
        self.bias = base.bias  # None, or a parameter (out,)

    @property
    def weight(self) -> Tensor:
        """The rounded matrix (out, in)."""
        return dequantize_rows(self.codes, self.scales)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)  # (..., out)


def quantize_model(model: nn.Module, bits: int = 8) -> None:
    """Put a QuantizedLinear in the place of every linear layer, in place; embeddings and norms stay as they are.

    A layer whose matrix is also an embedding (tied) stays, too: the embedding would need the floats all the same.
    Raises CourseError, before anything is changed, when no linear layer is left or one of them cannot be quantised.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    new = [
        (module, name, QuantizedLinear(child, bits))
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear) and id(child.weight) not in tables
    ]
    if not new:
        raise CourseError("the model has no linear layer to quantise: has it been quantised before?")
    for module, name, layer in new:
        setattr(module, name, layer)
