"""Tensors to numpy with one copy from the device for all of them.

A copy from a GPU costs tens of microseconds however small it is, so everything that a step has to say is laid behind
each other as bytes on the device, and crosses once, into pinned memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# What numpy has too, and bfloat16, which becomes float32. Others, such as float8, stay tensors, as sparse ones do.
_DTYPES = {"bool", "bfloat16", "complex64", "complex128", *(f"float{bits}" for bits in (16, 32, 64))}
_DTYPES |= {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}


class _Slot:
    """Where a tensor stood in a tree."""

    def __init__(self, index: int) -> None:
        self.index = index


def to_host(tree: Any) -> Any:
    """The same nested dicts, lists and tuples with numpy arrays in place of tensors.

    What comes back shares no memory with the simulator, which uses its buffers again, CPU or not.

    Args:
        tree: of anything; what `as_tensor` does not know stays as it is, as do tensors that numpy has no kind of.
    """
    tensors: list[Any] = []
    skeleton = _replace(tree, tensors)
    return _fill(skeleton, _copy(tensors)) if tensors else skeleton


def as_tensor(value: Any) -> Any:
    """The torch tensor behind `value`, or None: a tensor, or one of Isaac Lab 3's `ProxyArray`s."""
    inner = getattr(value, "torch", None)  # first: a `ProxyArray` passes a tensor's names on, and is none
    if hasattr(inner, "data_ptr"):
        return inner
    return value if hasattr(value, "data_ptr") else None


def _replace(value: Any, tensors: list[Any]) -> Any:
    tensor = as_tensor(value)
    if tensor is not None:
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _DTYPES or str(getattr(tensor, "layout", "torch.strided")) != "torch.strided":
            return value
        tensors.append(tensor.detach().float() if dtype == "bfloat16" else tensor.detach())
        return _Slot(len(tensors) - 1)
    if isinstance(value, dict):
        return {key: _replace(part, tensors) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_replace(part, tensors) for part in value) if type(value) in (list, tuple) else value
    return value


def _fill(value: Any, arrays: list[NDArray[Any]]) -> Any:
    if isinstance(value, _Slot):
        return arrays[value.index]
    if isinstance(value, dict):
        return {key: _fill(part, arrays) for key, part in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_fill(part, arrays) for part in value)
    return value


def _copy(tensors: list[Any]) -> list[NDArray[Any]]:
    """Fresh arrays with the tensors' values; of all tensors on one device with one copy."""
    import torch

    arrays: list[Any] = [None] * len(tensors)
    for device in {tensor.device for tensor in tensors}:
        chosen = [index for index, tensor in enumerate(tensors) if tensor.device == device]
        # Wide items first, so that every array begins where its item size divides.
        chosen.sort(key=lambda index: -tensors[index].element_size())
        packed = torch.cat([_bytes_of(tensors[index]) for index in chosen])
        host = packed if device.type == "cpu" else _pinned_copy(packed)
        buffer = host.numpy()
        start = 0
        for index in chosen:
            tensor = tensors[index]
            size = tensor.numel() * tensor.element_size()
            part = buffer[start : start + size].view(_numpy_dtype(tensor.dtype))
            arrays[index] = part.reshape(tuple(tensor.shape))
            start += size
    return arrays


def _bytes_of(tensor: Any) -> Any:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _pinned_copy(packed: Any) -> Any:
    """The bytes in pinned memory of their own; torch keeps a pool of it, so this allocates seldom.

    Never run here: it takes a GPU.
    """
    import torch

    host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
    host.copy_(packed, non_blocking=True)
    torch.cuda.current_stream(packed.device).synchronize()
    return host


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    return np.dtype(str(dtype).removeprefix("torch."))
