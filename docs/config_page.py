"""Writes ``docs/config.md`` from the comments in ``conf/``: ``make docs``.

Each file of a config group begins with a comment that describes the option. Each key has a comment after its value,
which may continue on the next lines; a section may have its comment on the line above.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CONF = Path(__file__).resolve().parents[1] / "conf"
PAGE = Path(__file__).with_name("config.md")

COMMANDS = {"train": "a run", "evaluate": "an evaluation", "explain": "an explanation", "predict": "a prediction"}

GROUPS = {
    "experiment": "Sets options and keys of all other groups. Options in a folder are rows of published tables.",
    "data": "The patches or digits, how mosaics are sampled from them, and the batch size.",
    "data/weights": "Fixed attention weights, with `schedule=what_only`. "
    "`+data/weights=NAME` adds them to an experiment that has none.",
    "model": "The networks: a pair `where` and `what`, or one `network` with two outputs.",
    "schedule": "The stages: which network trains in which epoch, and for how long.",
    "objective": "The loss.",
    "optimizer": "One optimizer per network.",
    "scheduler": "Learning-rate schedulers, one per network (`schedule` is about stages). "
    "A scheduler steps after each epoch in which its network trained.",
    "trainer": "Arguments of Lightning's `Trainer`.",
    "logger": "Lightning's loggers, by name.",
    "callbacks": "Lightning's callbacks, by name. "
    "`+callbacks.NAME._target_=CLASS` adds one, `callbacks.NAME=null` removes one.",
    "scale": "The size of a run.",
    "debug": "Settings for finding errors.",
    "reproduce": "A published table as a sweep, with `-m`.",
    "hydra/launcher": "How the jobs of a sweep are run. `basic`, the default, is Hydra's own: one job after another.",
    "hydra/sweeper": "Which jobs a sweep has. `basic`, the default, is Hydra's own: all combinations of the values.",
    "hydra/sweeper/sampler": "How a search samples the parameters of a trial.",
    "hydra/sweeper/pruner": "Which trials a search ends early.",
}
OPTIONS_ALONE = ("experiment", "reproduce", "scale", "debug")
"""Groups whose options set keys of other groups."""

SHARED = {
    "data/mosaics/default": "All mosaics",
    "data/mosaics/image": "All mosaics of images",
    "data/numbers/default": "All digits with a number",
}
"""Files of keys that several options of ``data`` share."""

INTRODUCTION = """\
# Config reference

`make docs` generates this page from the comments in `conf/`. [concepts.md](concepts.md) explains the terms.

| often used | key |
| --- | --- |
| length of a run; epochs per stage | `schedule.epochs`; `schedule.k` |
| learning rates; batch size | `lr.what`, `lr.where`; `data.batch_size` |
| name of the run and of its folder; random seeds | `name=mine`; `seed.all` |
| number of patches; of mosaics | `data.patches`; `data.train_mosaics`, `data.test_mosaics`, `data.held_out_mosaics` |
| your own images | `data=image_folder data.root=DIR data.foreground=[CLASS,CLASS] data.image_size=N` |
| the run's folder; a sweep's folder with `-m` | `hydra.run.dir=DIR`; `hydra.sweep.dir=DIR` |
| CPU or GPU; which GPU | `trainer.accelerator=cpu`; the environment variable `CUDA_VISIBLE_DEVICES=1` |
| jobs of a sweep at once | `hydra/launcher=joblib hydra.launcher.n_jobs=2` |

The command line chooses options of groups (`data=digits`) and sets keys (`lr.what=0.001`):

```sh
python -m attnmosaic.train experiment=stagewise data=digits schedule.epochs=20 lr.what=0.001
python -m attnmosaic.train experiment=stagewise data=digits --cfg job    # prints the config
```

- The command line overrides the experiment, and the experiment overrides the defaults of the groups.
- `required`: the key has no default. `null` is a value; the description says what it means.
- `${a.b}`: the value of the key `a.b`.
- A section with a `_target_` is a class and its arguments. `model.where._target_=my_package.MyWhere` names another
  class. The arguments of the first class are then removed, and `+model.where.depth=3` adds one of the new class. Data,
  trainer and callbacks keep their arguments; `~callbacks.pictures.formats` removes one.
- `+` adds what the config does not have: an argument of your class (`+model.where.depth=3`), a callback, an argument of
  Lightning's Trainer, or a key for interpolations (`+width=8 'model.where.hidden=[${width}]'`). A key that nothing uses
  is refused.
- Text that reads as a number, `true` or `null`, and text with accents, `=`, brackets or commas, needs double quotes for
  Hydra inside single quotes for the shell: `'data.foreground=["01","true",cat]'`, `'data.root="r/ünï"'`.
- Relative paths are relative to the folder where the command is started, in every job of a sweep too.
"""


@dataclass
class Key:
    """A key of a config file."""

    name: str
    default: str
    description: str


@dataclass
class ConfigFile:
    """A config file: the description of the option, and its keys by their dotted names."""

    description: str = ""
    keys: list[Key] = field(default_factory=list)


def read_config(path: Path) -> ConfigFile:
    """Reads the comments, keys and values of a file in ``conf/``."""
    config = ConfigFile()
    above: list[str] = []
    parents: list[tuple[int, str]] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    sets_other_groups = lines[0].startswith("# @package")
    for line in lines[sets_other_groups:]:
        key = config.keys[-1] if config.keys else None
        if comment := re.match(r"( *)# ?(.*)$", line):
            indent, text = comment.groups()
            if key is None and not above:
                config.description = f"{config.description} {text}".strip()
            elif key and len(indent) > 20:
                key.description += f" {text}"
            else:
                above.append(text)
        elif entry := re.match(r"( *)([\w.]+):(?: +([^\s#].*?))?(?:\s+# (.*))?$", line):
            indent, name, value, text = entry.groups()
            parents = [(depth, parent) for depth, parent in parents if depth < len(indent)]
            dotted = ".".join([*(parent for _, parent in parents), name])
            parents.append((len(indent), name))
            config.keys.append(Key(dotted, value or "", text or " ".join(above)))
            above = []
        elif line.strip() and key:  # the rest of a value
            key.default = f"{key.default} {line.strip()}".strip()
    described = (key for key in config.keys if not re.search(r"^defaults\b|_target_$", key.name))
    config.keys = [] if sets_other_groups else [*described]
    return config


def options(group: str) -> Iterator[tuple[str, ConfigFile]]:
    """Yields the options of a group with their files, then those in folders."""
    folder = CONF / group
    in_folders = sorted(folder.glob("*/*.yaml")) if group == "experiment" else []
    for path in [*sorted(folder.glob("*.yaml")), *in_folders]:
        yield path.relative_to(folder).with_suffix("").as_posix(), read_config(path)


def described_options(group: str) -> list[tuple[str, ConfigFile]]:
    """Returns the options of a group; a key without a description has that of another option's key."""
    described = {}
    files = dict(options(group))
    for file in [*(read_config(CONF / f"{name}.yaml") for name in SHARED if name.startswith(group)), *files.values()]:
        described |= {key.name: key.description for key in file.keys if key.description}
    for file in files.values():
        for key in file.keys:
            key.description = key.description or described.get(key.name, "")
    return [*files.items()]


def option_table(group: str) -> list[str]:
    """Returns the lines of a table of options, with one row for those of a folder that differ in a number only."""

    def family(option: tuple[str, ConfigFile]) -> str:
        name, file = option
        return re.sub(r"\d+", "n", f"{name}: {file.description}") if "/" in name else name

    rows = []
    for _, alike in itertools.groupby(options(group), family):
        (name, file), *others = alike
        description = file.description
        if others:
            last, other = others[-1][0].rpartition("/")[2], others[-1][1].description
            name = f"{name}` ... `{last}"
            parts = zip(re.findall(r"\d+|\D+", description), re.findall(r"\d+|\D+", other), strict=True)
            description = "".join(part if part == same else "n" for part, same in parts)
        rows.append(f"| `{name}` | {description} |")
    return ["| option | |", "| --- | --- |", *rows, ""]


def key_table(keys: list[Key], prefix: str = "") -> list[str]:
    """Returns the lines of a table of keys, none without a key to describe."""
    rows = [f"| `{prefix}{key.name}` | {shown(key.default)} | {key.description} |" for key in keys if key.description]
    return ["| key | default | |", "| --- | --- | --- |", *rows, ""] if rows else []


def shown(value: str) -> str:
    """Returns a default as the page shows it."""
    value = re.sub(r"^\$\{with:[\w.]+,(.*)\}$", r"\1", value)
    if value in ("", "???"):
        return "required" if value else ""
    return f"`{value if len(value) <= 40 else value[:37] + '...'}`".replace("|", "\\|")


def prefix_of(group: str) -> str:
    """Returns the beginning of the keys of a group's options."""
    return group.replace("/", ".") + "."


def page() -> str:
    """Returns the page."""
    lines = [INTRODUCTION]
    for command, subject in COMMANDS.items():
        lines += [f"## `attnmosaic.{command}`: keys of {subject}", ""]
        lines += key_table(read_config(CONF / f"{command}.yaml").keys)
        if command == "train":
            links = (f"[`{group}`](#group-{group.replace('/', '')})" for group in GROUPS)
            lines += [f"Groups: {', '.join(links)}.", ""]
    for group, text in GROUPS.items():
        lines += [f"## Group `{group}`", "", text, "", *option_table(group)]
        if group == "data":
            for name, title in SHARED.items():
                lines += [f"### {title}", "", *key_table(read_config(CONF / f"{name}.yaml").keys, "data.")]
        for name, file in [] if group in OPTIONS_ALONE else described_options(group):
            if table := key_table(file.keys, prefix_of(group)):
                lines += [f"### `{group}={name}`", "", *table]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
