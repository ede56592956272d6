"""Configs whose data do not fit into the free memory are refused."""

from typing import Any

import pytest

from attnmosaic.config import availability
from attnmosaic.core.errors import UserError


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"patches": 9, "train_mosaics": 10**7, "test_mosaics": 10**6}, "train_mosaics"),
        ({"patches": 9, "train_mosaics": 10**6, "test_mosaics": 10**7}, "test_mosaics"),
        ({"train_images": 10**6, "held_out_images": 10**5, "image_size": 32}, "train_images"),
        ({"train_images": 10**5, "held_out_images": 10**6, "image_size": 32}, "held_out_images"),
        ({"image_size": 6000, "color": True}, "image_size"),
        ({"points": 10**8}, "points"),
    ],
    ids=str,
)
def test_message_names_the_count_that_needs_most_memory(
    monkeypatch: pytest.MonkeyPatch, data: dict[str, Any], key: str
) -> None:
    """Data that fit are accepted, and all data if the free memory is unknown."""
    monkeypatch.setattr(availability, "free_gb", lambda: 1.0)
    with pytest.raises(UserError, match=rf"^data\.{key}: got {data[key]}, .* 1 GB are free; type a"):
        availability.check_data_fit(data)
    for free in (100.0, None):
        monkeypatch.setattr(availability, "free_gb", lambda free=free: free)
        availability.check_data_fit(data)
