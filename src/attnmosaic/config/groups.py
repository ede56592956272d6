"""Lists the options of config groups, for ``--help`` and for sweeps with ``glob(...)``."""

import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType


def group_options(group: str) -> Iterator[str]:
    """Yields the options of a config group, then the options in its subfolders: ``gradients/joint``."""
    loader = GlobalHydra.instance().config_loader()
    yield from loader.get_group_options(group)
    for folder in loader.get_group_options(group, ObjectType.GROUP):
        yield from (f"{folder}/{name}" for name in group_options(f"{group}/{folder}"))


def options(group: str) -> str:
    """Returns the lines of the help text for one config group; ``experiment`` includes its subfolders."""
    loader = GlobalHydra.instance().config_loader()
    names = group_options(group) if group == "experiment" else loader.get_group_options(group)
    text = " ".join(_ranges([*names]))
    return textwrap.fill(text, 80, initial_indent=f"  {group:<20}", subsequent_indent=" " * 22)


def _ranges(names: Sequence[str]) -> Iterator[str]:
    """Yields names; three or more names that differ only in the number at their end become a range: ``row1..8``."""
    for stem, group in itertools.groupby(names, lambda name: re.sub(r"\d+$", "", name)):
        series = [*group]
        yield from series if len(series) < 3 else [f"{series[0]}..{series[-1].removeprefix(stem)}"]
