"""Chooses how a run computes the convolutions of `ConvNet` on a CPU: by fused kernels, or by torch's own functions.

The choice is ``fused-avx512``, ``fused-avx2``, ``fused-generic`` or ``eager``. As results differ in the last digits, it
is in checkpoints and in ``result.json``, and a run that resumes keeps it.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnmosaic.nn.kernels import UnavailableError, vectors_of_cpu
from attnmosaic.nn.networks import ConvNet

log = logging.getLogger(__name__)

EAGER = "eager"
FUSED = "fused-"
FOLDER = Path("kernels")
"""Folder of compiled kernels in ``paths.cache``."""


def choose_convolutions(
    pair: nn.Module, device: torch.device, dtype: torch.dtype, config: Mapping[str, Any], before: str | None = None
) -> str | None:
    """Sets how networks compute their convolutions, and returns the choice; None if they have none, or not on a CPU.

    Args:
        pair: the networks.
        device: device that computes.
        dtype: type of the weights.
        config: the run's resolved config.
        before: choice of the checkpoint's run; None for a new run.
    """
    networks = [network for network in pair.children() if type(network) is ConvNet]
    for network in networks:
        network.kernel = None
    if not networks or device.type != "cpu":
        return None
    available = vectors_of_cpu()
    before = before if isinstance(before, str) else None  # a checkpoint can hold anything
    vectors = available[0] if before is None else before.removeprefix(FUSED)
    if config["compute"]["engine"] == EAGER or config["precision"] == "bfloat16":
        choice = EAGER
    elif vectors == EAGER:
        choice = EAGER
        log.info("convolutions: computed by torch's functions, like those of the checkpoint's run")
    else:
        folder = Path(config["paths"]["cache"], FOLDER)
        choice = _fuse(networks, dtype, vectors if vectors in available else available[0], folder)
    if before not in (None, choice):
        log.warning("convolutions: %s before, %s now; results differ in the last digits", before, choice)
    return choice


def _fuse(networks: list[ConvNet], dtype: torch.dtype, vectors: str, folder: Path) -> str:
    """Makes all networks use fused kernels, or none if one of the kernels is not available; returns the choice."""
    try:
        for network in networks:
            network.fuse(dtype, vectors, str(folder))
    except UnavailableError as error:
        for network in networks:
            network.kernel = None
        log.info("convolutions: computed by torch's functions, which are several times slower (%s)", error)
        return EAGER
    return FUSED + vectors
