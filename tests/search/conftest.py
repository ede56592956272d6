"""Fixtures of the tests of searches."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.instant_searches import Searches, instant_searches


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Searches]:
    """Starts searches in an empty folder; their trials train nothing."""
    with instant_searches(monkeypatch, tmp_path) as started:
        yield started
