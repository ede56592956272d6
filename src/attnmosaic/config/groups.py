"""Lists the options of config groups, for ``--help`` and sweeps over globs."""

import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType


def group_options(group: str) -> Iterator[str]:
    """Yields the options of a config group, then those in its folders: ``gradients/joint``."""
    loader = GlobalHydra.instance().config_loader()
    yield from loader.get_group_options(group)
    for folder in loader.get_group_options(group, ObjectType.GROUP):
        yield from (f"{folder}/{name}" for name in group_options(f"{group}/{folder}"))


def options(group: str) -> str:
    """Returns the lines of a help text that list a group's options; of experiments, also those in folders."""
    loader = GlobalHydra.instance().config_loader()
    found = group_options(group) if group == "experiment" else loader.get_group_options(group)
    names = " ".join(_ranges([*found]))
    return textwrap.fill(names, 80, initial_indent=f"  {group:<20}", subsequent_indent=" " * 22)


def _ranges(names: Sequence[str]) -> Iterator[str]:
    """Yields names, three or more that differ in their last number alone as one: ``row1..8``."""
    for stem, group in itertools.groupby(names, lambda name: re.sub(r"\d+$", "", name)):
        series = [*group]
        yield from series if len(series) < 3 else [f"{series[0]}..{series[-1].removeprefix(stem)}"]
