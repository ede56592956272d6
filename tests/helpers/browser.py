"""A real browser for what people look at: headless Chromium, cut off from every other machine."""

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

OURS = {"127.0.0.1", "localhost"}


class Browser:
    """Chromium, and what it said and asked for.

    Attributes:
        driver: Selenium's driver; `find_element` and so on.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.requests: list[str] = []

    def open(self, address: str | Path) -> None:
        """Loads a page, also one that is open already."""
        self.driver.get("about:blank")
        self.driver.get(address.as_uri() if isinstance(address, Path) else address)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs JavaScript in the page and returns what it returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, seconds: float = 60) -> Any:
        """Waits until a JavaScript expression is truthy, and returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(f"return {script}")):
            assert time.monotonic() < end, f"waited {seconds} s in vain for {script}"
            time.sleep(0.05)
        return value

    def picture(self, path: Path, width: int = 1280, height: int = 900) -> None:
        """Takes a screenshot."""
        self.driver.set_window_size(width, height)
        time.sleep(0.3)
        self.driver.save_screenshot(str(path))

    def complaints(self) -> list[str]:
        """Returns console messages of level SEVERE since the last call, failed requests among them."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def left_the_machine(self) -> list[str]:
        """Returns the addresses of all requests so far that were for another machine."""
        for entry in self.driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                sent = event["params"]
                self.requests.append(sent["request"]["url"] if "request" in sent else sent["url"])
        return [
            url
            for url in self.requests
            if urlsplit(url).scheme in ("http", "https", "ws", "wss", "ftp") and urlsplit(url).hostname not in OURS
        ]


@contextmanager
def chromium(profile: Path, *arguments: str) -> Iterator[Browser]:
    """Starts Chromium with a new profile. Skips where there is none, and fails there if ``CI`` is set."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver_path = shutil.which("chromedriver")
    if binary is None or driver_path is None:
        message = "Chromium and its driver are absent: on Debian, apt install chromium chromium-driver"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
        "--disable-dev-shm-usage", "--window-size=1280,900", f"--user-data-dir={profile}",
        # Every name but this machine's is unknown: a request to another one fails, and is complained of.
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
