"""Imports between packages match docs/architecture.md, and light modules import no heavy library."""

import json
import re
import subprocess
import sys
from collections import defaultdict

import grimp
import pytest
from helpers.settings import ROOT

HEAVY = ("torch", "torchvision", "pytorch_lightning", "torchmetrics", "matplotlib", "sklearn")
LIGHT = ("core", "config", "runs", "cli", "tables", "plotting", "reporting", "sweeps", "search")
LIGHT_ELSEWHERE = ("data.image_files", "inference.explanation", "inference.user_images", "training.ranks")
HEAVY_IN_LIGHT_PACKAGES = ("search.pruning",)  # a callback for Lightning
COMMANDS = ("train", "evaluate", "explain", "predict", "collect", "draw", "report")

_PROGRAM = """
import importlib, json, os, sys, traceback
import hydra, jinja2, numpy, rich, yaml  # imported by all modules, so once for all forks
modules, heavy = json.loads(sys.argv[1])
heavy_imports = {}
for module in modules:
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            importlib.import_module(module)
            answer = [name for name in heavy if name in sys.modules]
        except BaseException:
            answer = [traceback.format_exc()]
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        heavy_imports[module] = json.loads(file.read())
    os.wait()
print(json.dumps(heavy_imports))
"""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("attnmosaic", "hydra_plugins.attnmosaic_launcher", "hydra_plugins.attnmosaic_sweeper")


def light_modules(graph: grimp.ImportGraph) -> list[str]:
    """Returns the modules that must not import heavy libraries."""
    packages = tuple(f"attnmosaic.{name}." for name in LIGHT)
    others = {f"attnmosaic.{name}" for name in (*LIGHT_ELSEWHERE, *COMMANDS)}
    heavy = {f"attnmosaic.{name}" for name in HEAVY_IN_LIGHT_PACKAGES}
    return sorted(
        module
        for module in graph.modules
        if (module.startswith((*packages, "hydra_plugins")) or module in others) and module not in heavy
    )


def test_light_modules_import_nothing_heavy(graph: grimp.ImportGraph) -> None:
    """Each module is imported in its own process, in which no module of attnmosaic was imported before."""
    arguments = json.dumps([light_modules(graph), HEAVY])
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, arguments], capture_output=True, text=True, check=True, cwd=ROOT
    )
    heavy_imports = json.loads(done.stdout)
    assert len(heavy_imports) > 70
    assert {module: heavy for module, heavy in heavy_imports.items() if heavy} == {}


def test_imports_of_packages_match_the_table_in_architecture_md(graph: grimp.ImportGraph) -> None:
    imports: dict[str, set[str]] = defaultdict(set)
    for module in graph.modules:
        if module.startswith("attnmosaic.") and (package := module.split(".")[1]):
            others = (other.split(".") for other in graph.find_modules_directly_imported_by(module))
            imported = {parts[1] for parts in others if len(parts) > 1 and parts[0] == "attnmosaic"}
            imports[package] |= imported - {package}
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \|[^|]*\|([^|]*)\|$", text, flags=re.M)
    assert {name: {*re.findall(r"`(\w+)`", cell)} for name, cell in rows} == dict(imports)
