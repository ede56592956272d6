"""``docs/config.md`` is generated from ``conf/`` and describes every option and every key."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.configs import composed
from helpers.settings import ROOT
from omegaconf import OmegaConf

from docs import config_page

GROUPS = [group for group in config_page.GROUPS if not group.startswith("hydra/")]
FREE_SECTIONS = r"data\.views|at_most|trainer\.profiler"
"""Sections whose keys a user names."""


def test_the_page_is_generated_from_the_configs() -> None:
    assert config_page.PAGE.read_text(encoding="utf-8") == config_page.page(), "type: make docs"


def test_every_group_is_on_the_page() -> None:
    folders = {path.parent.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    rows = {folder for folder in folders if folder.startswith("experiment/")}
    shared = {Path(name).parent.as_posix() for name in config_page.SHARED}
    assert folders - rows - shared - {".", "hydra", "hydra/help", "hydra/job_logging"} == set(config_page.GROUPS)


@pytest.mark.parametrize("group", config_page.GROUPS)
def test_every_option_and_key_is_described(group: str) -> None:
    options = config_page.described_options(group)
    assert options
    for name, file in options:
        assert file.description, f"{name}: the file begins without a comment"
        for key in file.keys:
            assert key.description or not key.default, f"{name}: {key.name} has no comment"


def keys_of_value(value: object, key: str = "") -> Iterator[str]:
    """Yields the dotted keys of all values that are no sections."""
    if isinstance(value, dict) and value and not re.fullmatch(FREE_SECTIONS, key):
        for name, inner in value.items():
            yield from keys_of_value(inner, f"{key}.{name}" if key else str(name))
    elif not key.endswith("_target_"):
        yield key


OPTIONS = [
    (group, name)
    for group in GROUPS
    for name, _ in config_page.options(group)
    if not re.search(r"/.*[2-9]$", name)  # rows of published tables have the keys of the first one
]
CHOICES = [
    *(("train", f"{'+' if group == 'data/weights' else ''}{group}={name}") for group, name in OPTIONS),
    ("evaluate", "ckpt_path=x"), ("explain", "ckpt_path=x"), ("predict", "ckpt_path=x"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "choice"), CHOICES, ids=[choice for _, choice in CHOICES])
def test_every_key_of_a_composed_config_is_on_the_page(command: str, choice: str) -> None:
    page = config_page.PAGE.read_text(encoding="utf-8")
    described = {*re.findall(r"^\| `([\w.]+)` \|", page, flags=re.M)}
    config = OmegaConf.to_container(composed(command, choice))
    assert {*keys_of_value(config)} - described - {"name", "scale", "logger"} == set()
