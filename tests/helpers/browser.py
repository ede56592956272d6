"""A real browser for tests of pages: headless Chromium without access to other machines."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

THIS_MACHINE = {"127.0.0.1", "localhost"}


class Browser:
    """Chromium with its console messages and requests.

    Attributes:
        driver: Selenium's driver, with methods like `find_element`.
        requests: addresses of all requests so far.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.requests: list[str] = []

    def open(self, address: str | Path) -> None:
        """Loads a page; reloads a page that is already open."""
        self.driver.get("about:blank")
        self.driver.get(address.as_uri() if isinstance(address, Path) else address)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs JavaScript in the page and returns its result."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, seconds: float = 60) -> Any:
        """Waits until a JavaScript expression is truthy, and returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(f"return {script}")):
            assert time.monotonic() < end, f"still false after {seconds} s: {script}"
            time.sleep(0.05)
        return value

    def picture(self, path: Path, width: int = 1280, height: int = 900) -> None:
        """Writes a screenshot."""
        self.driver.set_window_size(width, height)
        time.sleep(0.3)
        self.driver.save_screenshot(str(path))

    def console_errors(self) -> list[str]:
        """Returns console messages of level SEVERE since the last call; they include failed requests."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def external_requests(self) -> list[str]:
        """Returns the addresses of all requests so far to other machines."""
        for entry in self.driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                params = event["params"]
                self.requests.append(params["request"]["url"] if "request" in params else params["url"])
        return [
            url
            for url in self.requests
            if urlsplit(url).scheme in ("http", "https", "ws", "wss", "ftp")
            and urlsplit(url).hostname not in THIS_MACHINE
        ]


@contextmanager
def chromium(profile: Path, *arguments: str) -> Iterator[Browser]:
    """Starts Chromium with a new profile. Without Chromium the test is skipped, or fails if ``CI`` is set."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver_path = shutil.which("chromedriver")
    if binary is None or driver_path is None:
        message = "Chromium or its driver is missing: on Debian, apt install chromium chromium-driver"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
        "--disable-dev-shm-usage", "--window-size=1280,900", f"--user-data-dir={profile}",
        # No host name except this machine's can be resolved: requests to other machines fail, with a console error.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1", *arguments,
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(driver_path))
    driver.set_page_load_timeout(120)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
