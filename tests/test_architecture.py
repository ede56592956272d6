"""The structure is what docs/architecture.md says: who imports whom, and which modules import nothing heavy."""

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
HEAVY_AMONG_THEM = ("search.pruning",)  # a callback of Lightning's
COMMANDS = ("train", "evaluate", "explain", "predict", "collect", "draw", "report")

_PROGRAM = """
import importlib, json, os, sys, traceback
import hydra, jinja2, numpy, rich, yaml  # what all of them import; each fork begins with these and with nothing of ours
modules, heavy = json.loads(sys.argv[1])
found = {}
for module in modules:
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            importlib.import_module(module)
            said = [name for name in heavy if name in sys.modules]
        except BaseException:
            said = [traceback.format_exc()]
        os.write(write, json.dumps(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        found[module] = json.loads(file.read())
    os.wait()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("attnmosaic", "hydra_plugins.attnmosaic_launcher", "hydra_plugins.attnmosaic_sweeper")


def light_modules(graph: grimp.ImportGraph) -> list[str]:
    """Returns the modules that promise to import nothing heavy."""
    packages = tuple(f"attnmosaic.{name}." for name in LIGHT)
    others = {f"attnmosaic.{name}" for name in (*LIGHT_ELSEWHERE, *COMMANDS)}
    heavy = {f"attnmosaic.{name}" for name in HEAVY_AMONG_THEM}
    return sorted(
        module
        for module in graph.modules
        if (module.startswith((*packages, "hydra_plugins")) or module in others) and module not in heavy
    )


def test_light_modules_import_nothing_heavy(graph: grimp.ImportGraph) -> None:
    """Each in a process of its own, which has imported nothing of ours before."""
    asked = json.dumps([light_modules(graph), HEAVY])
    done = subprocess.run([sys.executable, "-c", _PROGRAM, asked], capture_output=True, text=True, check=True, cwd=ROOT)
    found = json.loads(done.stdout)
    assert len(found) > 70
    assert {module: heavy for module, heavy in found.items() if heavy} == {}


def test_packages_and_their_imports_are_those_of_the_document(graph: grimp.ImportGraph) -> None:
    imports: dict[str, set[str]] = defaultdict(set)
    for module in graph.modules:
        if module.startswith("attnmosaic.") and (own := module.split(".")[1]):
            others = (other.split(".") for other in graph.find_modules_directly_imported_by(module))
            imports[own] |= {parts[1] for parts in others if len(parts) > 1 and parts[0] == "attnmosaic"} - {own}
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \|[^|]*\|([^|]*)\|$", text, flags=re.M)
    assert {name: {*re.findall(r"`(\w+)`", cell)} for name, cell in rows} == dict(imports)
