"""Bytes that CPU kernels take in passing, which nothing that sees whole operations can count.

The formulas follow torch's own kernels, and were compared with the allocator's events operation by operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["scratch_bytes"]

aten = torch.ops.aten
Backend = torch._C._ConvBackend  # type: ignore[attr-defined]
REORDERING = (Backend.Mkldnn, Backend.MkldnnEmpty)
UNFOLDING = (Backend.Slow2d, Backend.SlowDilated2d, Backend.Slow3d, Backend.SlowDilated3d)

ALIGNMENT = 128  # bytes
FEW = 2**13  # bytes of small buffers
SUMS = 257  # partial sums of a depthwise kernel's gradient, where channels come last; measured
BLOCK = 16  # channels in a block of oneDNN's layouts, with AVX-512
FEW_CHANNELS = 4  # fewer are not put into blocks
LARGE = 64  # elements of a kernel from which on oneDNN unfolds images


def convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *,
    output: torch.Tensor,
) -> int:
    """Return the scratch of a convolution.

    oneDNN computes in blocked layouts: input and weight are reordered, then, when these are freed again, the output.
    """
    sizes = None if bias is None else list(bias.shape)
    found = torch._C._select_conv_backend(
        x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, sizes
    )
    if transposed:
        return max(2 * blocked(output), blocked(x) + blocked_weight(weight))
    if found in REORDERING and channels_last(x):
        return 2 * bytes_in(weight) + FEW
    if found in REORDERING:
        return max(blocked(x) + blocked_weight(weight) + thin(weight, stride, output), blocked(output))
    return unfold(x, weight, output) if found in UNFOLDING else 0


def convolve_back(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias_sizes: list[int] | None,
    stride: Sequence[int],
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    mask: list[bool],
    *,
    output: Any,
) -> int:
    """Return the scratch of a convolution's backward: of the input's gradient, or of the weight's, which comes last.

    Where there are strides, three tensors of the input's size exist while its gradient is computed. Every thread but
    one sums the weight's gradient in a copy.
    """
    found = torch._C._select_conv_backend(
        x, weight, None, stride, padding, dilation, transposed, output_padding, groups, bias_sizes
    )
    turned = bytes_in(grad) if channels_last(x) != channels_last(grad) else 0  # one of them is copied
    if found in UNFOLDING and not transposed:
        return unfold(x, weight, grad) + turned
    if found not in REORDERING and not transposed:
        return 0
    bias = weight.element_size() * (bias_sizes or [0])[0]
    if channels_last(x):
        depthwise = weight.shape[1] == 1 < groups
        return (SUMS if depthwise else 3) * bytes_in(weight) + bias + turned
    left = bytes_in(weight) + bias if mask[1] else 0
    of_input = 2 * blocked(x) if max(stride) > 1 else blocked_weight(weight) + blocked(grad)
    copies = blocked_weight(weight) * (2 if torch.get_num_threads() > 1 else 0)
    reordered = blocked(x) + blocked(grad) + thin(weight, stride, grad) + copies
    of_weight = max(reordered, blocked_weight(weight) + bias, patches(x, weight, grad))
    return max(of_input - left if mask[0] else 0, of_weight if mask[1] else 0) + turned


def blocked(tensor: torch.Tensor) -> int:
    """Return the bytes of an activation whose channels fill whole blocks; those of images are not padded."""
    channels = tensor.shape[1]
    return bytes_in(tensor) if channels < FEW_CHANNELS else bytes_in(tensor) // channels * padded(channels)


def blocked_weight(weight: torch.Tensor) -> int:
    """Return the bytes of a weight whose channels fill whole blocks; it has one channel a group where depthwise."""
    inputs, outputs = weight.shape[1], weight.shape[0]
    size = bytes_in(weight) // outputs * padded(outputs)
    return size if inputs < FEW_CHANNELS else size // inputs * padded(inputs)


def padded(channels: int) -> int:
    """Return the channels of whole blocks."""
    return -(-channels // BLOCK) * BLOCK


def patches(x: torch.Tensor, weight: torch.Tensor, output: torch.Tensor) -> int:
    """Return the scratch of the weight's gradient of a large kernel, such as cuts images into patches.

    It is a matrix product in each thread; that it takes four times the weight was measured.
    """
    if math.prod(weight.shape[2:]) < LARGE:
        return 0
    return torch.get_num_threads() * (4 * bytes_in(weight) + unfold(x[:1], weight, output)) + ALIGNMENT


def thin(weight: torch.Tensor, stride: Sequence[int], output: torch.Tensor) -> int:
    """Return the bytes in which a strided convolution of single elements gathers them, one image a thread."""
    if max(stride) == 1 or math.prod(weight.shape[2:]) > 1:
        return 0
    image = weight.shape[1] * math.prod(output.shape[2:]) * weight.element_size()
    return torch.get_num_threads() * image + ALIGNMENT


def unfold(x: torch.Tensor, weight: torch.Tensor, output: torch.Tensor) -> int:
    """Return the bytes of the columns that a convolution is unfolded to; kernels of one element need none."""
    kernel = math.prod(weight.shape[2:])
    return 0 if kernel == 1 else x.shape[1] * kernel * x.shape[0] * math.prod(output.shape[2:]) * x.element_size()


def normalise(x: torch.Tensor, *_: Any, **__: Any) -> int:
    """Return the scratch of a batch norm: a scale and a shift for every channel."""
    return 2 * x.shape[1] * x.element_size()


def normalise_back(grad: torch.Tensor, x: torch.Tensor, *_: Any, **__: Any) -> int:
    """Return the scratch of a batch norm's backward: of the input's size, where the gradient lies in memory alike."""
    alike = x.stride() == grad.stride() and (x.is_contiguous() or channels_last(x))
    return (bytes_in(x) if alike else 0) + normalise(x)


def normalise_layer(x: torch.Tensor, *_: Any, **__: Any) -> int:
    """Return the scratch of a layer norm, which works on contiguous tensors."""
    return 0 if x.is_contiguous() else bytes_in(x)


def normalise_layer_back(grad: torch.Tensor, x: torch.Tensor, shape: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the scratch of a layer norm's backward: besides, the gradients of scale and shift by each thread."""
    sums = 2 * torch.get_num_threads() * math.prod(shape) * x.element_size()
    return sums + normalise_layer(x) + normalise_layer(grad)


SCRATCH: dict[Any, Callable[..., int]] = {
    aten.convolution.default: convolve,
    aten.convolution_backward.default: convolve_back,
    aten.native_batch_norm.default: normalise,
    aten.native_batch_norm_backward.default: normalise_back,
    aten.native_layer_norm.default: normalise_layer,
    aten.native_layer_norm_backward.default: normalise_layer_back,
}


def channels_last(tensor: torch.Tensor) -> bool:
    """Whether a tensor's channels lie next to each other."""
    if tensor.is_contiguous() or tensor.dim() != 4:
        return False
    return tensor.is_contiguous(memory_format=torch.channels_last)


def bytes_in(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()


def scratch_bytes(operation: Any, args: Sequence[Any], output: Any) -> int:
    """Return the bytes that an operation takes in passing; 0 where no formula is known.

    Parameters
    ----------
    operation
        An overload of ATen.
    args
        Its positional arguments.
    output
        What it returned.
    """
    formula = SCRATCH.get(operation)
    return 0 if formula is None else formula(*args, output=output)
