"""Whether what a config asks for fits the memory there is. Light: imports no torch.

Without it a count with a few zeros too many ends in a trace, or in a machine that swaps until the system kills the run.
"""

from collections.abc import Mapping
from typing import Any

from attnmosaic.core.errors import UserError
from attnmosaic.core.resources import free_gb

_SPLITS = ("train", "test", "held_out")


def check_data_fit(data: Mapping[str, Any]) -> None:
    """Checks that the memory left to this process holds what is drawn: a bound from below, told by the counts alone.

    Args:
        data: the resolved ``data`` section, its counts checked.

    Raises:
        UserError: it does not; names the count that takes most.
    """
    patches, side = data.get("patches") or 0, data.get("image_size") or 0
    channels = 3 if data.get("color", False) else 1
    sizes: dict[str, int] = {}
    for split in _SPLITS:
        # Two numbers of 8 bytes for each patch while they are drawn, as many where weights are decreed.
        sizes[f"data.{split}_mosaics"] = 16 * (data.get(f"{split}_mosaics") or 0) * patches
        # Resized as float32, kept as bytes.
        sizes[f"data.{split}_images"] = 5 * (data.get(f"{split}_images") or 0) * side**2 * channels
    sizes["data.points"] = 2 * 2 * 8 * 2 * (data.get("points") or 0)
    sizes["data.image_size"] = 5 * side**2 * channels * 10  # of ten images at least
    free, wanted = free_gb(), sum(sizes.values()) / 1e9
    if free is None or wanted <= free:
        return
    key = max(sizes, key=lambda key: sizes[key])
    raise UserError(
        f"{key}: got {data.get(key.removeprefix('data.'))}, which takes {wanted:.3g} GB of memory at least, and "
        f"{free:.3g} GB are free; type a smaller {key}"
    )
