"""What a run does not import."""

import subprocess
import sys
from pathlib import Path

from helpers.settings import SMALL

RUN = """
import sys
from attnmosaic.train import main
main()
print("plotting:", sorted({name.split(".")[0] for name in sys.modules} & {"matplotlib", "seaborn", "plotly", "pandas"}))
import torchmetrics.utilities.imports as found
print("as ever:", bool(found._MATPLOTLIB_AVAILABLE))
"""


def test_a_run_without_pictures_imports_no_plotting_library(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, *SMALL, "schedule.epochs=5", "callbacks.pictures=null", "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "plotting: []" in done.stdout
    assert "as ever: True" in done.stdout  # whoever asks later is told the truth
    assert (tmp_path / "run" / "result.json").exists()
    assert not list((tmp_path / "run").glob("*.png"))
