"""The wheel contains configs and plugins, so the package works without its repository."""

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from helpers.compilers import has_compiler
from helpers.settings import ROOT, SMALL

from attnmosaic.core.optional_packages import install_command


@pytest.mark.runs
def test_wheel_trains_in_an_empty_folder(tmp_path: Path) -> None:
    """The test builds and unpacks the wheel and trains from it."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    inside = {str(p.relative_to(site / "attnmosaic" / "conf")) for p in (site / "attnmosaic" / "conf").rglob("*.yaml")}
    assert inside == {str(p.relative_to(ROOT / "conf")) for p in (ROOT / "conf").rglob("*.yaml")}
    assert (site / "attnmosaic" / "plotting" / "attnmosaic.mplstyle").is_file()
    launcher = site / "hydra_plugins" / "attnmosaic_launcher"
    plugins = sorted(p.name for p in launcher.parent.iterdir())
    assert plugins == [
        "attnmosaic_launcher",
        "attnmosaic_sweeper",
    ]  # other packages can add further plugins to this namespace
    assert (launcher / "__init__.py").is_file()
    empty.mkdir()
    overrides = ["experiment=stagewise", "data=digits", *SMALL, "schedule.k=1", "schedule.epochs=2"]
    done = subprocess.run(
        [sys.executable, "-m", "attnmosaic.train", *overrides, "hydra.verbose=attnmosaic"],
        cwd=empty, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(site)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (result,) = (empty / "outputs" / "stagewise").glob("*/result.json")
    config = (result.parent / ".hydra" / "hydra.yaml").read_text()
    assert str(site / "attnmosaic" / "conf") in config
    # The C source is in the wheel, too.
    assert json.loads(result.read_text())["convolutions"].startswith("fused" if has_compiler() else "eager")
    assert str(ROOT) not in config


@pytest.mark.parametrize(
    ("variables", "spins"),
    [({}, "10000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7")],
    ids=["default", "user sets the policy", "user sets the number"],
)
def test_threads_spin_for_a_bounded_time(variables: dict[str, str], spins: str) -> None:
    """The variable is set before torch is imported, unless the user has set it or the wait policy."""
    program = "import os, sys, attnmosaic; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    inherited = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", program], env=inherited | variables, capture_output=True, text=True)
    assert done.stdout.split() == [spins, "False"]


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("extra", ["parallel", "slurm", "search"])
def test_install_command_lists_the_packages_of_an_extra(extra: str) -> None:
    """Not attnmosaic itself, which is not on a package index."""
    words = shlex.split(install_command(extra))
    assert words[:4] == [sys.executable, "-m", "pip", "install"]
    assert sorted(words[4:]) == sorted(PROJECT["optional-dependencies"][extra])


def test_install_command_names_the_repository_if_attnmosaic_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("attnmosaic.core.optional_packages.requires", not_installed)
    folder, _, extra = shlex.split(install_command("search"))[-1].rpartition("[")
    assert extra == "search]"
    assert (Path(folder) / "pyproject.toml").is_file()


def test_no_text_installs_attnmosaic_from_a_package_index() -> None:
    texts = [ROOT / "README.md", *(path for part in ("src", "conf", "docs") for path in (ROOT / part).rglob("*.*"))]
    for path in texts:
        if path.suffix in (".md", ".py", ".yaml"):
            assert not re.search(r"install[^\n]* '?attnmosaic", path.read_text(encoding="utf-8")), path
