"""The report in a real browser: clicks, keys, and the visible text."""

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
    """A folder with two written runs on 2-D mosaics, and a trained run on images; returns its parent folder."""
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
    """Opens a page and waits until it is complete."""
    browser.open("about:blank")  # The same address again would be reported as loaded too early.
    browser.open(file)
    browser.wait("document.readyState == 'complete'")


@pytest.fixture
def page(browser: Browser, outputs: Path) -> Iterator[Browser]:
    """The page, newly opened; after the test, checks for errors in the console and requests to other machines."""
    browser.driver.set_window_size(1280, 900)
    load(browser, outputs / "page.html")
    yield browser
    assert browser.console_errors() == []
    assert browser.external_requests() == []


def elements(page: Browser, selector: str, within: WebElement | None = None) -> list[WebElement]:
    return (within or page.driver).find_elements("css selector", selector)


def column(page: Browser, number: int) -> list[str]:
    return page.run(
        "return [...document.querySelectorAll('#all-runs tbody tr')].map(row => row.cells[arguments[0]].innerText)",
        number,
    )


def scrolled_to(page: Browser, element: WebElement) -> WebElement:
    page.run("arguments[0].scrollIntoView({block: 'center'})", element)
    return element


def results(outputs: Path) -> dict[str, dict[str, Any]]:
    files = (outputs / "outputs").rglob("result.json")
    return {str(file.parent.relative_to(outputs / "outputs")): json.loads(file.read_text()) for file in files}


def test_list_of_runs_shows_their_results(page: Browser, outputs: Path) -> None:
    lines = page.run(
        "return [...document.querySelectorAll('#all-runs tbody tr')].map(row => [...row.cells].map(c => c.innerText))"
    )
    by_folder = {line[0].splitlines()[-1]: line for line in lines}
    assert len(by_folder) == 3
    for folder, result in results(outputs).items():
        metrics = result["metrics"]
        names = ("train/accuracy", "test/accuracy", "held_out/accuracy", "test/focus", "test/ftpt")
        assert by_folder[folder][4:9] == [f"{metrics[name]:.3f}" for name in names]
        assert by_folder[folder][3].split()[0] == "10"
    accuracies = [results(outputs)[f"gradients/joint/seed{seed}"]["metrics"]["test/accuracy"] for seed in (0, 1)]
    row = page.run(
        "return [...document.querySelectorAll('#published tbody tr')]"
        ".find(row => row.innerText.startsWith('joint') && row.innerText.includes('test/accuracy')).innerText"
    )
    assert f"{sum(accuracies) / 2:.3f}" in row


def test_headings_sort_a_table(page: Browser) -> None:
    heading = elements(page, "#all-runs thead th")[5]
    button = elements(page, "button", heading)[0]
    assert button.text == "test"
    scrolled_to(page, button).click()
    values = [float(text) for text in column(page, 5)]
    assert values == sorted(values)
    assert heading.get_attribute("aria-sort") == "ascending"
    button.send_keys(Keys.ENTER)
    assert [float(text) for text in column(page, 5)] == sorted(values, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"
    scrolled_to(page, elements(page, "#all-runs thead th button")[0]).click()
    assert heading.get_attribute("aria-sort") is None
    names = column(page, 0)
    assert names == sorted(names)


def test_button_switches_colours(page: Browser) -> None:
    def colours() -> list[str]:
        return page.run("const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")

    light = colours()
    button = elements(page, "#theme")[0]
    assert (light[0], button.text) == ("rgb(255, 255, 255)", "Dark")
    button.click()
    dark = colours()
    assert (dark[0], button.text) == ("rgb(21, 23, 27)", "Light")
    assert dark[1] != light[1]
    button.click()
    assert colours() == light


def test_link_opens_the_section_of_a_run(page: Browser) -> None:
    runs = elements(page, "details.run")
    assert [run.get_attribute("open") is not None for run in runs] == [True, False, False]
    link = elements(page, "#all-runs tbody a[href='#run-3']")[0]
    scrolled_to(page, link).click()
    assert runs[2].get_attribute("open") is not None
    page.wait("Math.abs(document.getElementById('run-3').getBoundingClientRect().top) < 200", 5)
    scrolled_to(page, elements(page, "summary", runs[1])[0]).click()
    assert elements(page, ".chart", runs[1])[0].is_displayed()


def test_chart_shows_values_at_the_pointer(page: Browser, outputs: Path) -> None:
    run = elements(page, "details.run")[0]  # digits
    (accuracy,) = [figure for figure in elements(page, "figure.chart", run) if figure.text.startswith("Accuracy")]
    plot = scrolled_to(page, elements(page, ".plot", accuracy)[0])
    ActionChains(page.driver).move_to_element_with_offset(plot, plot.size["width"] // 2 - 15, 0).perform()
    tip = elements(page, "#tip")[0]
    final = results(outputs)["digits"]["metrics"]
    lines = tip.text.splitlines()
    assert lines[0] == "epoch 10 (What)"  # With k = 2, What trains in epochs 9 and 10.
    assert lines[1:] == [f"{split} {final[f'{split}/accuracy']:.3f}" for split in ("train", "test", "held_out")]
    assert len(elements(page, ".cross", accuracy)) == 1
    page.run("arguments[0].focus()", plot)
    plot.send_keys(Keys.ARROW_LEFT)
    assert tip.text.splitlines()[0] == "epoch 5 (What)"
    plot.send_keys(Keys.ESCAPE)
    assert not tip.is_displayed()
    assert not elements(page, ".cross", accuracy)


def test_strip_shows_values_by_seed(page: Browser, outputs: Path) -> None:
    strip = scrolled_to(page, elements(page, "g[data-tip]")[0])
    page.run("arguments[0].focus()", strip)
    tip = elements(page, "#tip")[0]
    value = results(outputs)["gradients/joint/seed1"]["metrics"]["train/accuracy"]
    assert "joint: " in tip.text
    assert f"seed 1 {value:.4f}" in tip.text


def test_buttons_filter_mosaics_and_keys_select_them(page: Browser, outputs: Path) -> None:
    gallery = elements(page, "details.run .gallery")[0]
    final = results(outputs)["digits"]["metrics"]

    def shown() -> list[WebElement]:
        return [card for card in elements(page, ".card", gallery) if card.is_displayed()]

    def press(choice: str) -> str:
        button = scrolled_to(page, elements(page, f"[data-choice={choice}]", gallery)[0])
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
        status = elements(page, "[role=status]", gallery)[0].text
        assert status.startswith(f"{len(shown())} of {count} ")
    press("all")
    cards = shown()
    scrolled_to(page, cards[0]).click()
    assert page.driver.switch_to.active_element == cards[0]
    cards[0].send_keys(Keys.ARROW_RIGHT)
    assert page.driver.switch_to.active_element == cards[1]
    cards[1].send_keys(Keys.END)
    assert page.driver.switch_to.active_element == cards[-1]
    cards[-1].send_keys(Keys.ARROW_LEFT)
    assert page.driver.switch_to.active_element == cards[-2]
    assert [card.get_attribute("tabindex") for card in cards].count("0") == 1
    numbers = elements(page, ".weights span", cards[-2])
    assert all(number.value_of_css_property("opacity") == "1" for number in numbers)
    images = page.run("return [...document.querySelectorAll('.mosaic img')].map(i => i.complete && i.naturalWidth)")
    assert images
    assert set(images) == {24}  # three patches of 8 pixels


def test_2d_mosaic_is_drawn_on_the_plane(page: Browser) -> None:
    run = elements(page, "details.run")[1]
    scrolled_to(page, elements(page, "summary", run)[0]).click()
    plane = scrolled_to(page, next(plane for plane in elements(page, "svg.plane", run) if plane.is_displayed()))
    assert plane.value_of_css_property("background-image").startswith('url("data:image/png')
    assert len(elements(page, "circle", plane)) == 9


def test_buttons_switch_views_of_a_matrix_and_copy_the_command(browser: Browser, tmp_path: Path) -> None:
    for seed, value in ((0, 0.5), (1, 0.56)):
        write_run(tmp_path / f"seed{seed}", "averages/dataset1", seed,
                  {f"dataset_{i}/accuracy": value for i in range(1, 11)}, epochs=5)  # fmt: skip
    main([str(tmp_path)])
    load(browser, tmp_path / "report.html")

    def shown() -> list[str | None]:
        return [view.get_attribute("data-view") for view in elements(browser, ".view") if view.is_displayed()]

    assert shown() == ["reproduced"]
    elements(browser, "[data-choice=difference]")[0].click()
    assert shown() == ["difference"]
    assert "+0.01" in elements(browser, ".view[data-view=difference]")[0].text
    copy = elements(browser, ".copy-it")[0]
    copy.click()
    browser.wait("document.querySelector('.copy-it').textContent != 'Copy'", 5)
    assert browser.console_errors() == []


@pytest.mark.parametrize("width", [420, 1280])
def test_page_fits_into_the_window(page: Browser, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_page_is_complete_without_scripts(outputs: Path, tmp_path: Path) -> None:
    with chromium(tmp_path, "--blink-settings=scriptEnabled=false") as plain:
        load(plain, outputs / "page.html")
        cards = [card for card in elements(plain, "details.run[open] .card") if card.is_displayed()]
        assert {card.get_attribute("data-split") for card in cards} == {"train", "test", "held_out"}
        assert not [button for button in elements(plain, "button") if button.is_displayed()]
        assert "All 30 held_out mosaics" in elements(plain, ".gallery")[0].text


def test_report_of_forty_runs_loads(browser: Browser, tmp_path: Path, record_property: Any) -> None:
    """Prints the time to load without asserting it."""
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
    assert len(elements(browser, "details.run")) == 40
    assert browser.console_errors() == []
