"""A headless Chromium for tests of pages."""

import base64
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
TIMEOUT_SECONDS = 240.0
WIDTH = 1100


class Browser:
    """One window; use it as a context manager."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for switch in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars"):
            options.add_argument(f"--{switch}")
        options.add_argument(f"--window-size={WIDTH},1000")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.quit()

    def open(self, address: str) -> None:
        self.driver.get(address)

    def wait_for(self, find: Callable[[], Any]) -> Any:
        """Return the first result of a function that is not empty."""
        end = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < end:
            try:
                if found := find():
                    return found
            except Exception as error:  # an element that was replaced meanwhile
                last = error
            else:
                last = None
            time.sleep(0.1)
        raise AssertionError(f"nothing within {TIMEOUT_SECONDS} s: {last}: {self.text('body')}")

    def elements(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return "\n".join(one.text for one in self.elements(selector))

    def drop(self, file: Path) -> None:
        """Give a file to the page, as a drop does: both fill the page's file input."""
        [field, *_] = self.wait_for(lambda: self.elements("#song input[type=file]"))
        field.send_keys(str(file))

    def sources(self, selector: str, attribute: str = "src") -> list[str]:
        return [one.get_attribute(attribute) for one in self.elements(selector)]

    def other_hosts(self) -> set[str]:
        """Return the hosts but the loopback that pages have requested something from since the start."""
        messages = [
            json.loads(one["message"])["message"] for one in self.driver.get_log("performance")
        ]
        urls = [
            urlsplit(one["params"]["request"]["url"])
            for one in messages
            if one["method"] == "Network.requestWillBeSent"
        ]
        assert urls
        return {url.netloc for url in urls if url.scheme in ("http", "https")} - {
            url.netloc for url in urls if url.hostname == "127.0.0.1"
        }

    def screenshot(self) -> bytes:
        """Return a PNG of the whole page."""
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        answer = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot",
            {
                "captureBeyondViewport": True,
                "clip": {"x": 0, "y": 0, "width": WIDTH, "height": size["height"], "scale": 1},
            },
        )
        return base64.b64decode(answer["data"])
