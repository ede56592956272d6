"""CUDA tensors without a GPU: they have shapes and a device but no values; reading a value raises an error."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attnmosaic.training import stagewise
from attnmosaic.training.base import RunModule

CUDA = torch.device("cuda", 0)

COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Waits(RuntimeError):
    """Error for an operation that would wait for the GPU."""


class NoWaits(TorchDispatchMode):
    """Raises `Waits` for each operation with tensors on the host and on the GPU, as it copies and therefore waits.

    Numbers on the host (tensors without dimensions) are allowed as arguments of a kernel, but not of a copy.
    """

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        devices = {t.device.type for t in tensors if t.dim() > 0 or t.device.type == "cuda" or function in COPIES}
        if devices == {"cpu", "cuda"}:
            raise Waits(str(function))
        return result


def _no_gradients(loss: Tensor, inputs: Any, *_: Any, **__: Any) -> tuple[Tensor, ...]:
    inputs = [inputs] if isinstance(inputs, Tensor) else inputs
    return tuple(torch.zeros_like(value) + 0 * loss.detach().sum() for value in inputs)


@contextlib.contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the block, ``.to("cuda")`` returns fake tensors; mixing devices or reading values raises an error.

    Gradients are zeros, because torch's autograd needs the driver of a GPU.
    """
    monkeypatch.setattr(stagewise, "decomposes", lambda *_: True)  # the original compares values
    monkeypatch.setattr(torch.autograd, "grad", _no_gradients)
    replaced = torch.__future__.get_overwrite_module_params_on_conversion()
    # Without this setting, `to` cannot replace a module's tensors by fake ones.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(replaced)


@contextlib.contextmanager
def bfloat16() -> Iterator[None]:
    """Has the effect of ``torch.autocast("cuda", torch.bfloat16)``, which without a GPU has none."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # the same as in Lightning
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_cache_enabled(cached)


def on_fake_cuda(module: RunModule, data: Any) -> None:
    """Moves a module and its data to the fake GPU, as a trainer would."""
    no_clipping = {"gradient_clip_val": None, "gradient_clip_algorithm": None}
    precision = SimpleNamespace(clip_gradients=lambda *_, **__: None)
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        callback_metrics={}, datamodule=data, current_epoch=0, global_rank=0, precision_plugin=precision, **no_clipping
    )
    module.to(CUDA)
    assert module.device == CUDA
    module.on_fit_start()


def zero_gradients(parameters: list[Tensor]) -> None:
    """Sets gradients to zero, as a stand-in for a backward pass."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
