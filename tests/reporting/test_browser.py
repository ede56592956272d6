"""The report in a real browser: what a reader clicks, types and sees."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import Browser, chromium
from helpers.run_folders import config_of, image_record, pair_metrics, point_record, write_config, write_run
from helpers.settings import SMALL
from hydra import compose, initialize_config_dir
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.remote.webelement import WebElement

from attnmosaic.config.schema import conf_dir, register
from attnmosaic.report import main
from attnmosaic.train import train

pytestmark = pytest.mark.runs

QUICK = (*SMALL, "schedule.epochs=10", "schedule.k=2", "callbacks.pictures=null", "logger=none")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A row with two seeds of 2-D mosaics, and a real run on images."""
    root = tmp_path_factory.mktemp("browsed")
    folder = root / "outputs" / "digits"
    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        train(compose("train", ["experiment=stagewise", "data=digits", *QUICK, f"run_dir={folder}"]))
    for seed in (0, 1):
        metrics = pair_metrics(train=0.9 - seed / 8, test=0.8 - seed / 8, held_out=0.7 - seed / 8)
        folder = root / "outputs" / "gradients" / "joint" / f"seed{seed}"
        write_run(folder, "gradients/joint", seed, metrics, point_record(), epochs=10)
    main([str(root / "outputs"), "--out", str(root / "page.html")])
    return root


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


def load(browser: Browser, file: Path) -> None:
    """Opens a page and waits for the whole of it: the same address again is reported as loaded too early."""
    browser.open("about:blank")
    browser.open(file)
    browser.wait("document.readyState == 'complete'")


@pytest.fixture
def page(browser: Browser, outputs: Path) -> Iterator[Browser]:
    """The page, opened anew; whatever a test does there, nothing is complained of and nothing asked of others."""
    browser.driver.set_window_size(1280, 900)
    load(browser, outputs / "page.html")
    yield browser
    assert browser.console_errors() == []
    assert browser.external_requests() == []


def found(page: Browser, selector: str, within: WebElement | None = None) -> list[WebElement]:
    return (within or page.driver).find_elements("css selector", selector)


def column(page: Browser, number: int) -> list[str]:
    return page.run(
        "return [...document.querySelectorAll('#all-runs tbody tr')].map(row => row.cells[arguments[0]].innerText)",
        number,
    )


def to(page: Browser, element: WebElement) -> WebElement:
    page.run("arguments[0].scrollIntoView({block: 'center'})", element)
    return element


def results(outputs: Path) -> dict[str, dict[str, Any]]:
    files = (outputs / "outputs").rglob("result.json")
    return {str(file.parent.relative_to(outputs / "outputs")): json.loads(file.read_text()) for file in files}


def test_its_numbers_are_the_results(page: Browser, outputs: Path) -> None:
    lines = page.run(
        "return [...document.querySelectorAll('#all-runs tbody tr')].map(row => [...row.cells].map(c => c.innerText))"
    )
    told = {line[0].splitlines()[-1]: line for line in lines}
    assert len(told) == 3
    for folder, result in results(outputs).items():
        metrics = result["metrics"]
        names = ("train/accuracy", "test/accuracy", "held_out/accuracy", "test/focus", "test/ftpt")
        assert told[folder][4:9] == [f"{metrics[name]:.3f}" for name in names]
        assert told[folder][3].split()[0] == "10"
    tested = [results(outputs)[f"gradients/joint/seed{seed}"]["metrics"]["test/accuracy"] for seed in (0, 1)]
    row = page.run(
        "return [...document.querySelectorAll('#published tbody tr')]"
        ".find(row => row.innerText.startsWith('joint') && row.innerText.includes('test/accuracy')).innerText"
    )
    assert f"{sum(tested) / 2:.3f}" in row


def test_a_table_is_sorted_by_its_headings(page: Browser) -> None:
    heading = found(page, "#all-runs thead th")[5]
    button = found(page, "button", heading)[0]
    assert button.text == "test"
    to(page, button).click()
    values = [float(text) for text in column(page, 5)]
    assert values == sorted(values)
    assert heading.get_attribute("aria-sort") == "ascending"
    button.send_keys(Keys.ENTER)
    assert [float(text) for text in column(page, 5)] == sorted(values, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    to(page, found(page, "#all-runs thead th button")[0]).click()
    assert heading.get_attribute("aria-sort") is None
    names = column(page, 0)
    assert names == sorted(names)


def test_colours(page: Browser) -> None:
    def colours() -> list[str]:
        return page.run("const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")

    light = colours()
    button = found(page, "#theme")[0]
    assert (light[0], button.text) == ("rgb(255, 255, 255)", "Dark")
    button.click()
    dark = colours()
    assert (dark[0], button.text) == ("rgb(21, 23, 27)", "Light")
    assert dark[1] != light[1]
    button.click()
    assert colours() == light


def test_runs_open_from_their_links(page: Browser) -> None:
    runs = found(page, "details.run")
    assert [run.get_attribute("open") is not None for run in runs] == [True, False, False]
    link = found(page, "#all-runs tbody a[href='#run-3']")[0]
    to(page, link).click()
    assert runs[2].get_attribute("open") is not None
    page.wait("Math.abs(document.getElementById('run-3').getBoundingClientRect().top) < 200", 5)
    to(page, found(page, "summary", runs[1])[0]).click()
    assert found(page, ".chart", runs[1])[0].is_displayed()


def test_a_chart_tells_its_values(page: Browser, outputs: Path) -> None:
    run = found(page, "details.run")[0]  # digits
    (accuracy,) = [figure for figure in found(page, "figure.chart", run) if figure.text.startswith("Accuracy")]
    plot = to(page, found(page, ".plot", accuracy)[0])
    ActionChains(page.driver).move_to_element_with_offset(plot, plot.size["width"] // 2 - 15, 0).perform()
    tip = found(page, "#tip")[0]
    final = results(outputs)["digits"]["metrics"]
    lines = tip.text.splitlines()
    assert lines[0] == "epoch 10 (What)"  # k = 2: epochs 9 and 10
    assert lines[1:] == [f"{split} {final[f'{split}/accuracy']:.3f}" for split in ("train", "test", "held_out")]
    assert len(found(page, ".cross", accuracy)) == 1
    page.run("arguments[0].focus()", plot)
    plot.send_keys(Keys.ARROW_LEFT)
    assert tip.text.splitlines()[0] == "epoch 5 (What)"
    plot.send_keys(Keys.ESCAPE)
    assert not tip.is_displayed()
    assert not found(page, ".cross", accuracy)


def test_a_strip_tells_its_seeds(page: Browser, outputs: Path) -> None:
    strip = to(page, found(page, "g[data-tip]")[0])
    page.run("arguments[0].focus()", strip)
    tip = found(page, "#tip")[0]
    value = results(outputs)["gradients/joint/seed1"]["metrics"]["train/accuracy"]
    assert "joint: " in tip.text
    assert f"seed 1 {value:.4f}" in tip.text


def test_mosaics_are_filtered_and_browsed_by_keys(page: Browser, outputs: Path) -> None:
    gallery = found(page, "details.run .gallery")[0]
    final = results(outputs)["digits"]["metrics"]

    def shown() -> list[WebElement]:
        return [card for card in found(page, ".card", gallery) if card.is_displayed()]

    def press(choice: str) -> str:
        button = to(page, found(page, f"[data-choice={choice}]", gallery)[0])
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        return button.text

    assert {card.get_attribute("data-split") for card in shown()} == {"held_out"}
    press("test")
    assert {card.get_attribute("data-split") for card in shown()} == {"test"}
    for kind in ("ffpt", "ffpf", "ftpf", "ftpt"):
        count = round(30 * final[f"test/{kind}"])
        assert press(kind).rpartition(" ")[2] == str(count)
        assert {card.get_attribute("data-kind") for card in shown()} == ({kind} if count else set())
        assert min(1, count) <= len(shown()) <= min(8, count)
        status = found(page, "[role=status]", gallery)[0].text
        assert status.startswith(f"{len(shown())} of {count} ")
    press("all")
    cards = shown()
    to(page, cards[0]).click()
    assert page.driver.switch_to.active_element == cards[0]
    cards[0].send_keys(Keys.ARROW_RIGHT)
    assert page.driver.switch_to.active_element == cards[1]
    cards[1].send_keys(Keys.END)
    assert page.driver.switch_to.active_element == cards[-1]
    cards[-1].send_keys(Keys.ARROW_LEFT)
    assert page.driver.switch_to.active_element == cards[-2]
    assert [card.get_attribute("tabindex") for card in cards].count("0") == 1
    numbers = found(page, ".weights span", cards[-2])
    assert all(number.value_of_css_property("opacity") == "1" for number in numbers)
    images = page.run("return [...document.querySelectorAll('.mosaic img')].map(i => i.complete && i.naturalWidth)")
    assert images
    assert set(images) == {24}  # three patches of 8 pixels


def test_points_lie_on_regions(page: Browser) -> None:
    run = found(page, "details.run")[1]
    to(page, found(page, "summary", run)[0]).click()
    plane = to(page, next(plane for plane in found(page, "svg.plane", run) if plane.is_displayed()))
    assert plane.value_of_css_property("background-image").startswith('url("data:image/png')
    assert len(found(page, "circle", plane)) == 9


def test_views_of_a_matrix_and_copying(browser: Browser, tmp_path: Path) -> None:
    for seed, value in ((0, 0.5), (1, 0.56)):
        write_run(tmp_path / f"seed{seed}", "averages/dataset1", seed,
                  {f"dataset_{i}/accuracy": value for i in range(1, 11)}, epochs=5)  # fmt: skip
    main([str(tmp_path)])
    load(browser, tmp_path / "report.html")

    def shown() -> list[str | None]:
        return [view.get_attribute("data-view") for view in found(browser, ".view") if view.is_displayed()]

    assert shown() == ["reproduced"]
    found(browser, "[data-choice=difference]")[0].click()
    assert shown() == ["difference"]
    assert "+0.01" in found(browser, ".view[data-view=difference]")[0].text
    copy = found(browser, ".copy-it")[0]
    copy.click()
    browser.wait("document.querySelector('.copy-it').textContent != 'Copy'", 5)
    assert browser.console_errors() == []


@pytest.mark.parametrize("width", [420, 1280])
def test_nothing_sticks_out(page: Browser, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_reads_without_scripts(outputs: Path, tmp_path: Path) -> None:
    with chromium(tmp_path, "--blink-settings=scriptEnabled=false") as plain:
        load(plain, outputs / "page.html")
        cards = [card for card in found(plain, "details.run[open] .card") if card.is_displayed()]
        assert {card.get_attribute("data-split") for card in cards} == {"train", "test", "held_out"}
        assert not [button for button in found(plain, "button") if button.is_displayed()]
        assert "All 30 held_out mosaics" in found(plain, ".gallery")[0].text


def test_forty_runs_load(browser: Browser, tmp_path: Path, record_property: Any) -> None:
    """How long it took is told, not asserted."""
    first = write_run(tmp_path / "all" / "0", metrics=pair_metrics(), record=image_record(each=8, side=32))
    for seed in range(1, 40):
        shutil.copytree(first, tmp_path / "all" / str(seed))
        write_config(tmp_path / "all" / str(seed), config_of("table1/row1", seed=seed))
    main([str(tmp_path / "all")])
    load(browser, tmp_path / "all" / "report.html")
    browser.wait("performance.getEntriesByType('navigation')[0].loadEventEnd > 0")
    loaded = browser.run("return performance.getEntriesByType('navigation')[0].loadEventEnd")
    record_property("milliseconds", loaded)
    print(f"40 runs load in {loaded:.0f} ms")
    assert len(found(browser, "details.run")) == 40
    assert browser.console_errors() == []
