"""TensorBoard's pages of a small sweep, opened in a real browser."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.browser import Browser, chromium
from helpers.settings import SMALL

pytestmark = pytest.mark.runs

TEXT = """
    const texts = [], silent = ['STYLE', 'SCRIPT', 'TEMPLATE'];
    const walk = (node) => {
      if (node.shadowRoot) walk(node.shadowRoot);
      for (const child of node.childNodes) {
        if (child.nodeType === Node.TEXT_NODE && child.textContent.trim()) texts.push(child.textContent.trim());
        else if (child.nodeType === Node.ELEMENT_NODE && !silent.includes(child.tagName)) walk(child);
      }
    };
    walk(document.body);
    return texts;
"""
"""Script that returns all texts of the page, including those in shadow roots."""

PICTURES = """
    const found = [];
    const walk = (node) => {
      if (node.shadowRoot) walk(node.shadowRoot);
      if (node.tagName === 'IMG' && node.naturalWidth) found.push([node.naturalWidth, node.naturalHeight]);
      for (const child of node.children) walk(child);
    };
    walk(document.body);
    return found;
"""
"""Script that returns width and height of all loaded pictures of the page."""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a sweep of two runs that differ in a learning rate."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["", "lr.where=0.01,0.1", "schedule.k=2", "schedule.epochs=8", *SMALL, "-m"])
        patch.setenv("ATTNMOSAIC_CACHE", str(folder / "cache"))
        from attnmosaic.train import main

        main()
    (sweep_folder,) = (folder / "outputs" / "sweeps" / "gaussian").iterdir()
    return sweep_folder


@pytest.fixture(scope="module")
def page(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Browser, str]]:
    """Yields a browser, and the address of TensorBoard for the sweep."""
    log = tmp_path_factory.mktemp("tensorboard") / "log"
    with log.open("w") as file:
        command = [
            sys.executable,
            "-m",
            "tensorboard.main",
            "--logdir",
            str(sweep),
            "--port",
            "0",
            "--host",
            "127.0.0.1",
        ]
        server = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        end = time.monotonic() + 120
        while not (found := re.search(r"http://127.0.0.1:(\d+)/", log.read_text())):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        address = found[0]
        while len(json.load(urllib.request.urlopen(f"{address}data/runs"))) < 2:
            assert time.monotonic() < end, "TensorBoard does not find the runs"
            time.sleep(0.2)
        with chromium(tmp_path_factory.mktemp("profile")) as browser:
            yield browser, address
    finally:
        server.terminate()
        server.wait()


def texts(browser: Browser) -> list[str]:
    return browser.run(TEXT)


def wait_for(browser: Browser, *wanted: str) -> list[str]:
    """Waits until the page has all the wanted texts; returns all texts of the page."""
    end = time.monotonic() + 60
    while not set(wanted) <= set(found := texts(browser)):
        assert time.monotonic() < end, f"waited for {set(wanted) - set(found)}; the page has {found}"
        time.sleep(0.2)
    return found


def show(page: tuple[Browser, str], name: str) -> Browser:
    browser, address = page
    browser.open(f"{address}#{name}")
    return browser


def test_hparams_equal_the_results(page: tuple[Browser, str], sweep: Path) -> None:
    browser = show(page, "hparams")
    found = wait_for(browser, "lr.where", "schedule.k", "test/accuracy", "held_out/accuracy")
    # Swept keys come before keys that are equal in all runs; keys that were not set are missing.
    assert found.index("lr.where") < min(found.index("data.train_mosaics"), found.index("schedule.k"))
    assert not {"lr.what", "precision", "seed.all"} & {*found}
    for job in ("0", "1"):
        metrics = json.loads((sweep / job / "result.json").read_text())["metrics"]
        for name in ("test/accuracy", "held_out/accuracy", "train/accuracy", "held_out/focus", "test/ftpt"):
            assert any(_number(text) == pytest.approx(metrics[name], abs=1e-4) for text in found), (name, found)
    wait_for(browser, "PARALLEL COORDINATES VIEW")


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text) else None


def test_custom_scalars_have_the_published_plots(page: tuple[Browser, str]) -> None:
    browser = show(page, "custom_scalars")
    wait_for(browser, "focus against prediction", "largest weight above or below one half", "0", "1")
    # Each run has its lines and the strip of stages; TensorBoard adds them one after the other.
    wanted = ["Matches (10)"] * 3 + ["Matches (6)"] * 3
    end = time.monotonic() + 60
    found: list[str] = []
    while [text for text in found if text.startswith("Matches")] != wanted:
        assert time.monotonic() < end, found
        time.sleep(0.2)
        found = texts(browser)
    for title in ("train", "test", "held out"):
        assert found.count(title) == 2  # a chart of each of both published plots


def test_time_series_are_grouped_by_split(page: tuple[Browser, str]) -> None:
    wait_for(show(page, "timeseries"), "gradient", "held_out", "mosaics")


def test_mosaics_are_shown(page: tuple[Browser, str]) -> None:
    browser = show(page, "images")
    wait_for(browser, "mosaics")
    end = time.monotonic() + 60
    while len(pictures := browser.run(PICTURES)) < 4:
        assert time.monotonic() < end, texts(browser)
        time.sleep(0.2)
    assert all(width > 300 and height > 300 for width, height in pictures)


def test_pages_have_no_errors_and_no_outside_requests(page: tuple[Browser, str]) -> None:
    browser, address = page
    for name, text in (
        ("scalars", "running"), ("distributions", "held_out"), ("histograms", "held_out"), ("text", "config"),
    ):  # fmt: skip
        show(page, name)
        wait_for(browser, text)
    assert browser.console_errors() == []
    assert browser.external_requests() == []
    assert any(url.startswith(address) for url in browser.requests)
