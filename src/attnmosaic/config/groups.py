"""Lists the options of config groups, for ``--help`` and for sweeps with ``glob(...)``."""

import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType


def group_options(group: str) -> Iterator[str]:
    """Yields the options of a config group, then the options in its subfolders: ``gradients/joint``."""
    yield from names_in(group, ObjectType.CONFIG)
    for folder in names_in(group, ObjectType.GROUP):
        yield from (f"{folder}/{name}" for name in group_options(f"{group}/{folder}"))


def names_in(group: str, kind: ObjectType) -> list[str]:
    """Returns the names of a group's options, or of its subfolders.

    Hydra evaluates the help text with every config that it composes, and its own ``get_group_options`` parses the
    command line again for each group, which takes half a second in all.
    """
    sources = GlobalHydra.instance().config_loader().get_sources()
    return sorted({name for source in sources if source.is_group(group) for name in source.list(group, kind)})


def options(group: str) -> str:
    """Returns the lines of the help text for one config group; ``experiment`` includes its subfolders."""
    names = group_options(group) if group == "experiment" else names_in(group, ObjectType.CONFIG)
    text = " ".join(_ranges([*names]))
    return textwrap.fill(text, 80, initial_indent=f"  {group:<20}", subsequent_indent=" " * 22)


def _ranges(names: Sequence[str]) -> Iterator[str]:
    """Yields names; three or more names that differ only in the number at their end become a range: ``row1..8``."""
    for stem, group in itertools.groupby(names, lambda name: re.sub(r"\d+$", "", name)):
        series = [*group]
        yield from series if len(series) < 3 else [f"{series[0]}..{series[-1].removeprefix(stem)}"]
