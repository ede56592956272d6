"""Content of the report: it shows the files on the disk, and incomplete files do not break it."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from filelock import FileLock
from helpers.run_folders import (
    COUNTS,
    Page,
    config_of,
    image_record,
    pair_metrics,
    point_record,
    write_config,
    write_plan,
    write_run,
)

from attnmosaic.core.errors import UserError
from attnmosaic.report import main
from attnmosaic.reporting.charts import Line, chart, round_ticks
from attnmosaic.reporting.gallery import choose_mosaics
from attnmosaic.reporting.page import MOSAICS, render
from attnmosaic.runs.discovery import newest_folder
from attnmosaic.runs.snapshots import KINDS

HOSTILE = """<img src=x onerror="alert(1)">'&</script><script>alert(2)</script>{{ 7 * 7 }}"""


def page(folder: Path, out: Path | None = None) -> Page:
    return Page(render(folder, out or folder / "report.html"))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with two seeds of one row, the first with mosaics, and one run of another row."""
    folder = tmp_path_factory.mktemp("reports") / "table1"
    write_run(folder / "row1" / "seed0", metrics=pair_metrics(train=0.93, test=0.8), seed=0,
              record=image_record())  # fmt: skip
    write_run(folder / "row1" / "seed1", metrics=pair_metrics(train=0.95, test=0.84), seed=1)
    write_run(folder / "row2" / "seed0", "table1/row2", metrics=pair_metrics(train=0.5, test=0.83))
    jobs = {f"row{row}/seed{seed}": config_of(f"table1/row{row}", seed=seed) for row in (1, 2) for seed in (0, 1)}
    write_plan(folder, jobs, ["python -m attnmosaic.train -m reproduce=table1 'seed.all=0,1'"])
    return folder


@pytest.fixture(scope="module")
def swept(sweep: Path) -> Page:
    return page(sweep)


# ---- numbers


def test_published_beside_reproduced(swept: Page) -> None:
    assert swept.row("1", "test/accuracy") == [
        "1", "test/accuracy", "0.81", "0.820", "0.028", "2", "+0.010", "within the seeds' range", "2 finished",
    ]  # fmt: skip
    assert swept.row("1", "train/accuracy")[2:8] == ["0.96", "0.940", "0.014", "2", "-0.020", "within 0.05"]
    assert swept.row("2", "train/accuracy")[2:8] == ["0.94", "0.500", "-", "1", "-0.440", "outside"]
    assert swept.row("2", "test/accuracy")[7:] == ["within 0.05", "1 finished, 1 missing"]
    assert swept.row("3", "test/accuracy")[2:] == ["0.43", "-", "-", "0", "-", "-", "missing"]
    assert swept.row("1", "held_out/accuracy")[2:8] == ["-", "0.500", "0.000", "2", "-", "-"]


def test_bar_of_a_difference_starts_in_the_middle(sweep: Path) -> None:
    html = render(sweep, sweep / "report.html")
    assert 'class="fill in" style="left: 50.0%; width: 2.5%"' in html  # +0.010; a difference of 0.2 fills 50 %
    assert 'class="fill near" style="left: 45.0%; width: 5.0%"' in html  # -0.020
    assert 'class="fill out" style="left: 0.0%; width: 50.0%"' in html  # -0.440, longer than the bar


def test_summary_counts_runs_and_cells(swept: Page) -> None:
    assert "3 of 4 runs finished" in swept.text
    assert "4 of 16 published cells compared" in swept.text
    assert "1 within the seeds' range 2 within 0.05 1 outside 12 not compared" in swept.text
    assert "python -m attnmosaic.train -m reproduce=table1 'seed.all=0,1'" in swept.text
    assert "SMOKE" not in swept.text
    assert "could not be read" not in swept.text


def test_every_run_has_a_row_in_the_list(swept: Page) -> None:
    line = swept.row("table1/row1 row1/seed0")
    assert line[1:8] == ["0", "finished", "180", "0.930", "0.800", "0.500", "0.500"]
    assert line[9] == "2 min 05 s"
    assert swept.row("table1/row2 row2/seed1")[1:5] == ["1", "missing", "0 of 200", "-"]


def test_different_devices_get_a_column(tmp_path: Path) -> None:
    for seed, device in ((0, "cpu"), (1, "cuda")):
        folder = write_run(tmp_path / f"seed{seed}", seed=seed, metrics=pair_metrics())
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        (folder / "result.json").write_text(json.dumps(result | {"device": device}), encoding="utf-8")
    report = page(tmp_path)
    assert [report.row(f"table1/row1 seed{seed}")[10] for seed in (0, 1)] == ["cpu", "cuda"]


def test_strip_shows_the_values_of_all_seeds(swept: Page) -> None:
    (strip,) = [tag["data-tip"] for tag in swept.having("g", role="img") if "0.8400" in tag["data-tip"]]
    assert strip == "1: seed 0 0.8000, seed 1 0.8400; mean 0.8200; published 0.81"


def test_environment_shows_shared_values_once(swept: Page) -> None:
    assert swept.text.count("cpu (a fine one)") == 1
    assert "device cpu (a fine one)" in swept.text
    assert "torch 2.9" in swept.text
    assert swept.row("run", "config_hash") == ["run", "config_hash", "seed.all", "seed.data", "seed.init", "seed.order"]
    assert swept.row("row1/seed1", "hash1")[2:] == ["1", "1", "1", "1"]


def test_matrix_table_has_four_views(tmp_path: Path) -> None:
    for seed, value in ((0, 0.5), (1, 0.56)):
        metrics = {f"dataset_{i}/accuracy": value for i in range(1, 11)}
        write_run(tmp_path / f"seed{seed}", "averages/dataset1", seed, metrics, epochs=5)
    report = page(tmp_path)
    assert [tag["data-view"] for tag in report.having("div", class_="view")] == [
        "reproduced", "published", "difference", "standard deviation over seeds",
    ]  # fmt: skip
    first_rows = [row[1:4] for row in report.rows if row[0] == "1"]
    assert first_rows == [["0.53", "0.53", "0.53"], ["0.52", "0.64", "0.68"], ["+0.01", "-0.11 ○", "-0.15 ○"],
                    ["0.042", "0.042", "0.042"]]  # fmt: skip
    assert "dataset_1/accuracy" in report.text


def test_smoke_run_outside_published_tables(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "gaussian", metrics=pair_metrics(held_out=0.75), overrides=("scale=smoke",))
    report = page(tmp_path)
    assert report.row("row")[1:4] == ["train/accuracy", "test/accuracy", "held_out/accuracy"]
    assert report.row("gaussian (SMOKE)")[3] == "0.750"
    assert "SMOKE. Few examples" in report.text
    assert not report.having("a", href="#seeds")  # One seed without published values needs no plot by seed.


# ---- curves


def test_chart_has_the_values_of_the_csv_file(swept: Page) -> None:
    charts = [json.loads(text) for kind, text in swept.data if kind == "application/json" and "stages" in text]
    fractions = charts[0]
    assert (fractions["epochs"][:2], fractions["epochs"][-1], fractions["right"]) == ([5, 10], 180, 180)
    ftpt, ffpt, ftpf, ffpf = (count / sum(COUNTS["train"]) for count in COUNTS["train"])
    assert [line[0] for line in fractions["lines"]] == [ftpt, ffpt, ftpf, ffpf]
    assert fractions["stages"][:3] == [[0, 5, "What"], [5, 10, "Where"], [10, 15, "What"]]
    titles = [tag["aria-label"] for tag in swept.having("svg", role="img") if "At the end" in tag["aria-label"]]
    assert titles[0] == (
        "Focus and prediction, train. At the end: focus, right 0.600, no focus, right 0.200, "
        "focus, wrong 0.150, no focus, wrong 0.050."
    )
    assert [title.split(".")[0] for title in titles[1:7]] == [
        "Focus and prediction, test", "Focus and prediction, held_out", "Accuracy", "Focus", "Loss",
        "Largest weight above one half",
    ]  # fmt: skip


def test_run_with_gradients_has_their_charts(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "gaussian", epochs=10)
    (folder / "gradients.csv").write_text(
        "epoch,stage,mosaics,foreground,background\n0,,250,-0.5,2\n1,what,250,-0.25,0.001\n"
    )
    shown = page(tmp_path)
    assert "mean over 250 training mosaics" in shown.text
    titles = [tag["aria-label"] for tag in shown.having("svg", role="img")]
    assert "Gradient of the loss. At the end: foreground -0.2500, background (sum) 0.001000." in titles
    assert "Absolute gradient of the loss. At the end: foreground 0.2500, background (sum) 0.001000." in titles


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 180, [0, 50, 100, 150]), (-0.3, 5.3, [0, 2, 4]), (0.312, 0.318, None)],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float] | None) -> None:
    values = round_ticks(low, high)
    assert ticks is None or values == ticks
    assert 2 <= len(values) <= 6
    assert all(low <= tick <= high for tick in values)


def test_wide_range_of_losses_has_a_logarithmic_axis() -> None:
    wide = chart("Loss", [Line("train", "blue", "-", [(1, 2.0), (2, 0.2), (3, 0.002)])], log=True)
    near = chart("Loss", [Line("train", "blue", "-", [(1, 2.0), (2, 1.0)])], log=True)
    assert wide is not None
    assert near is not None
    assert "logarithmic" in wide.note
    assert [text for _, text in wide.y_ticks] == ["0.01", "0.1", "1"]
    heights = [y for _, y in wide.lines[0].dots]
    assert heights[2] - heights[1] == pytest.approx(2 * (heights[1] - heights[0]), abs=0.2)
    assert near.note == ""
    assert chart("Nothing", [Line("train", "blue", "-", [])]) is None
    zeros = chart("Gradient", [Line("foreground", "green", "-", [(1, 0.0), (2, 0.0)])], zero=True)
    assert zeros is not None
    assert next(text for _, text in zeros.y_ticks) == "0"


# ---- mosaics


def test_mosaic_card_shows_kind_weights_and_probabilities(swept: Page) -> None:
    cards = swept.having("li", class_="card")
    assert len(cards) == 3 * 4 * 2
    assert [(card["data-split"], card["data-kind"]) for card in cards[:3]] == [
        ("held_out", "ffpt"), ("held_out", "ffpt"), ("held_out", "ffpf"),
    ]  # fmt: skip
    assert all(tag["src"].startswith("data:image/") for tag in swept.having("img"))
    assert len(swept.having("img")) == 2 * len(cards)
    assert "no focus, right held_out 100 0.05 (true foreground) 0.60 0.05" in swept.text
    assert "predicted: horse , correct" in swept.text
    assert swept.row("horse", "", "0.80", "true")
    (gallery,) = [json.loads(text) for kind, text in swept.data if '"counts"' in text]
    assert gallery["counts"]["held_out"] == {"ftpt": 50, "ffpt": 30, "ftpf": 15, "ffpf": 5}
    assert [kind for kind, _ in gallery["kinds"]] == list(KINDS)


def test_2d_mosaics_are_shown_on_the_plane(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "gaussian", metrics=pair_metrics(), record=point_record(), epochs=10)
    report = page(tmp_path)
    cards = report.having("li", class_="card")
    assert len(report.having("svg", class_="plane")) == len(cards) == 24
    assert len(report.having("rect", class_="frame")) == len(report.having("path", class_="star")) == len(cards)
    (shared,) = [tag["style"] for tag in report.having("ul", class_="cards")]
    assert shared.startswith("--plane: url(data:image/png;base64,")
    assert not report.having("img")


def test_worst_mosaics_of_each_kind_are_chosen() -> None:
    record = image_record(each=8)
    assert len(choose_mosaics(record, 96)) == 96
    few = choose_mosaics(record, 6)
    assert {split for split, _ in few} == {"held_out"}
    kinds = record.final["held_out"].kinds
    assert [kinds[i] for _, i in few] == ["ffpt", "ffpt", "ffpf", "ffpf", "ftpf", "ftpt"]
    assert [i for _, i in few] == [0, 1, 8, 9, 16, 24]  # the first indices of each kind, which are the worst mosaics


def test_report_of_forty_runs_is_small(tmp_path: Path) -> None:
    first = write_run(tmp_path / "all" / "0", metrics=pair_metrics(), record=image_record(each=8, side=32), epochs=30)
    result = json.loads((first / "result.json").read_text())
    for seed in range(1, 40):
        copy = tmp_path / "all" / str(seed)
        shutil.copytree(first, copy)
        write_config(copy, config_of("table1/row1", seed=seed))
        result["metrics"]["test/accuracy"] = seed / 40
        (copy / "result.json").write_text(json.dumps(result))
    html = render(tmp_path / "all", tmp_path / "report.html")
    report = Page(html)
    assert len(report.having("details", class_="run")) == 40
    assert len(report.having("li", class_="card")) == MOSAICS
    assert len(report.having("ul", class_="cards")) == 40
    assert len(html) < 3e6
    assert report.row("table1/row1 39")[5] == "0.975"


# ---- two outputs


def test_two_outputs(tmp_path: Path) -> None:
    names = ("loss", "digit_accuracy", "sum_accuracy")
    metrics = {f"{s}/{name}": value for s in ("train", "test", "held_out")
               for name, value in zip(names, (1, 0.9, 0.7), strict=True)}  # fmt: skip
    folder = write_run(tmp_path / "a", "mnist_sum", metrics=metrics, epochs=2)
    columns = [f"{part}/{name}" for part in ("running", "train", "held_out") for name in names]
    rows = [[1, *[0.5] * len(columns)], [2, *[0.25] * len(columns)]]
    lines = [["epoch", *columns], *rows]
    (folder / "metrics.csv").write_text("\n".join(",".join(map(str, line)) for line in lines) + "\n")
    (folder / "confusion_digit_held_out.csv").write_text("true digit,0,1\n0,3,1\n1,0,4\n")
    report = page(tmp_path)
    assert report.row("mnist_sum a")[4] == "0.900 · 0.700"
    assert "digit, held_out: 87.50 % correct" in report.text
    assert ["0", "75", "25"] in report.rows
    assert ["1", "", "100"] in report.rows
    titles = [tag["aria-label"].split(".")[0] for tag in report.having("svg", role="img")]
    assert titles == ["Accuracy of the digit", "Accuracy of the sum", "Loss"]
    assert report.row("row")[1:4] == ["held_out/digit_accuracy", "held_out/sum_accuracy", "test/digit_accuracy"]


# ---- unfinished runs and incomplete files


def test_states_of_unfinished_runs(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    write_run(root / "stopped", epochs=7)
    failed = write_run(root / "failed", "table1/row2", epochs=3)
    (failed / "error.txt").write_text("Traceback:\n  there\nRunError: the loss became nan\n")
    running = write_run(root / "running", "table1/row3", epochs=4)
    write_run(root / "finished", "table1/row4", metrics=pair_metrics())
    plan = {"commands": [], "jobs": {"not_begun": {"name": "table1/row5", "scale": "full"}}}
    (root / "sweep.json").write_text(json.dumps(plan))
    with FileLock(running / ".lock"):
        report = page(root)
    lines = {row[0].split()[-1]: row[2].split()[0] for row in report.rows if len(row) == 11 and row[0] != "name"}
    assert lines.pop("not_begun") == "missing"
    assert lines == {state: state for state in ("failed", "finished", "running", "stopped")}
    assert "1 of 5 runs finished" in report.text
    assert report.row("table1/row1 stopped")[3] == "7 of 180"
    line = report.row("table1/row2 failed")
    assert "RunError: the loss became nan" in line[2]
    assert "Traceback: there RunError" in line[2]
    assert not [tag for tag in report.having("a") if "not_begun" in tag["href"]]  # The folder does not exist yet.


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("result.json", b'{"metrics": {"train/acc', "not a complete result"),
        ("mosaics.npz", None, "cannot read"),
        ("metrics.csv", b"epoch,stage,running/loss\n1,what,2.0\n2,wh", "1 of 2 rows"),
    ],
)
def test_incomplete_file_is_reported(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    folder = write_run(tmp_path / "odd", metrics=pair_metrics(), record=image_record())
    (folder / name).write_bytes((folder / name).read_bytes()[:2000] if content is None else content)
    write_run(tmp_path / "complete", seed=1, metrics=pair_metrics(test=0.77))
    report = page(tmp_path)
    (problem,) = [text for text in report.texts if reason in text]
    assert name in problem
    assert report.row("table1/row1 complete")[5] == "0.770"


# ---- the user's text is never markup, and the page loads nothing


def test_markup_in_names_is_escaped(tmp_path: Path) -> None:
    root = tmp_path / HOSTILE.replace("/", "_")
    folder = write_run(root / f"run {HOSTILE.replace('/', '_')}", "gaussian", record=image_record((HOSTILE, "b", "c")),
                       metrics=pair_metrics() | {f"{HOSTILE}_accuracy": 0.5})  # fmt: skip
    (folder / "error.txt").write_text(HOSTILE)
    (folder / f"{HOSTILE.replace('/', '_')}.png").write_bytes(b"")
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([f"name={HOSTILE}"]))
    result = json.loads((folder / "result.json").read_text())
    result |= {"device": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    (folder / "result.json").write_text(json.dumps(result))
    table = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(table.replace(",what,", f',"{HOSTILE.replace(chr(34), chr(34) * 2)}",'))
    stopped = write_run(root / "b", "gaussian", overrides=(f"name='{HOSTILE.split(chr(39))[0]}'",), epochs=5)
    (stopped / "error.txt").write_text(HOSTILE)
    report = page(root)
    assert [text for kind, text in report.data if kind == "script"] == [script()]
    assert all("alert" not in f"{name} {list(own)}" for name, own in report.tags)
    assert not [own for name, own in report.tags if any(key.startswith("on") for key in own)]
    assert {urlsplit(tag["src"]).scheme for tag in report.having("img")} == {"data"}
    assert "49" not in [text.strip("'& ") for text in report.texts]  # Names are not evaluated as templates.
    assert report.text.count(HOSTILE) >= 8
    assert all("<" not in text for kind, text in report.data if kind == "application/json")


def script() -> str:
    import attnmosaic.reporting

    return (Path(attnmosaic.reporting.__file__).parent / "templates" / "report.js").read_text()


def test_page_loads_no_other_files(sweep: Path) -> None:
    html = render(sweep, sweep / "report.html")
    assert set(re.findall(r"https?://[^\s\"']*", html)) == {"http://www.w3.org/2000/svg"}
    assert set(re.findall(r"url\(([^)]{0,5})", html)) <= {"data:"}
    report = Page(html)
    addresses = [own[key] for _, own in report.tags for key in ("src", "href", "action", "data") if key in own]
    assert {urlsplit(address).scheme for address in addresses} == {"", "data"}
    (policy,) = [tag["content"] for tag in report.having("meta", http_equiv="Content-Security-Policy")]
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    assert policy.split("; ")[:4] == [
        "default-src 'none'", "img-src data:", "style-src 'unsafe-inline'", f"script-src 'sha256-{digest}'",
    ]  # fmt: skip


def test_links_are_relative_to_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a b" / "100% # ü: x", metrics=pair_metrics())
    (folder / "loss.png").write_bytes(b"")
    out = tmp_path / "elsewhere" / "page.html"
    main([str(tmp_path / "a b"), "--out", str(out)])
    report = Page(out.read_text())
    links = [tag["href"] for tag in report.having("a") if not tag["href"].startswith("#")]
    targets = {(out.parent / unquote(link)).resolve() for link in links}
    names = ("config.yaml", "train.log", "metrics.csv", "result.json", "loss.png")
    assert targets == {folder, *(folder / name for name in names)}
    assert all(re.fullmatch(r"[\w.%~/-]+", link) for link in links)


# ---- the command


def test_command_of_a_single_run_is_rebuilt(tmp_path: Path) -> None:
    overrides = ("data.foreground=[0, 1]",)
    write_run(tmp_path / "run", "gaussian", metrics=pair_metrics(test=0.875), overrides=overrides)
    report = page(tmp_path / "run")
    assert "python -m attnmosaic.train experiment=gaussian 'data.foreground=[0, 1]'" in report.text
    assert "0.875 test accuracy" in report.text
    assert report.text.count("python -m attnmosaic.train ") == 1


def test_newest_folder_is_the_sweep_or_run_that_wrote_last(tmp_path: Path, sweep: Path) -> None:
    shutil.copytree(sweep, tmp_path / "outputs" / "table1")
    lone = write_run(tmp_path / "outputs" / "gaussian" / "now", "gaussian")

    def wrote(file: Path, at: int) -> None:
        os.utime(file, (at, at))

    for file in (tmp_path / "outputs").rglob("*"):
        wrote(file, 1000)
    wrote(lone / "metrics.csv", 2000)
    assert newest_folder(tmp_path / "outputs") == lone
    wrote(tmp_path / "outputs" / "table1" / "row2" / "seed0" / "metrics.csv", 3000)
    assert newest_folder(tmp_path / "outputs") == tmp_path / "outputs" / "table1"
    (lone / "report.html").write_text("")  # not one of the run's own files
    assert newest_folder(tmp_path / "outputs") == tmp_path / "outputs" / "table1"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no runs"):
        newest_folder(tmp_path / "empty")


def test_command_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "outputs" / "gaussian" / "now", "gaussian", metrics=pair_metrics())
    monkeypatch.chdir(tmp_path)
    main([])
    file = run / "report.html"
    size = file.stat().st_size / 1e6
    assert capsys.readouterr().out == (
        f"report: outputs/gaussian/now/report.html ({size:.1f} MB, one file); open it in a browser: {file.as_uri()}\n"
    )
    for arguments, words in (
        (["nowhere"], "'nowhere'"),
        (["outputs", "--out", "outputs"], "--out: cannot write 'outputs'"),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: {words}")


@pytest.mark.runs
def test_command_report_imports_no_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "gaussian", metrics=pair_metrics(), record=point_record(), epochs=5)
    code = "import sys; from attnmosaic.report import main; main(sys.argv[1:]);"
    code += "print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.endswith("False False\n"), done.stderr


def test_values_that_are_not_finite_are_skipped(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", metrics=pair_metrics(test=float("nan")), epochs=10)
    text = (folder / "metrics.csv").read_text().replace("2.0", "nan").replace("1.0", "inf")
    (folder / "metrics.csv").write_text(text)
    record = image_record()
    record.final["test"].alpha[:] = np.nan
    record.save(folder / "mosaics.npz")
    report = page(tmp_path)
    assert report.row("table1/row1 a")[5] == "-"
    assert "Loss" in {tag["aria-label"].split(".")[0] for tag in report.having("svg", role="img")}
