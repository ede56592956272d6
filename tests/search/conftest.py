"""Searches without commands."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.instant_searches import Searches, instant_searches


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Searches]:
    """Starts searches in an empty folder, whose trials take no time."""
    with instant_searches(monkeypatch, tmp_path) as made:
        yield made
