"""Chromium, and the checks that every page must pass."""

import base64
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.conftest import wait_until

QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --force-prefers-reduced-motion"
)
WIDTHS = {"phone": 390, "tablet": 820, "wide": 1600}
THEMES = ("light", "dark")


class Browser:
    """Chromium, and the actions of a person."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)
        wait_until(lambda: self.run("return document.readyState") == "complete", 20, "the page is there")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)  # type: ignore[no-untyped-call]

    def find(self, selector: str) -> WebElement:
        """Return the first element of a selector, as soon as there is one."""
        element: WebElement = wait_until(lambda: self.all(selector), 15, f"{selector} is on the page")[0]
        return element

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    @property
    def text(self) -> str:
        """The text of the page."""
        return str(self.run("return document.body.innerText"))

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.text, 20, f"the page says {text!r}")

    def click(self, text: str) -> None:
        """Click the link or the button whose text begins so, and wait for the next page."""
        before = self.find("html")
        element = self.run(
            "const element = [...document.querySelectorAll('button'), ...document.querySelectorAll('a')]"
            ".find((candidate) => candidate.checkVisibility() && candidate.innerText.startsWith(arguments[0]));"
            "element?.scrollIntoView({block: 'center'}); return element",
            text,
        )
        assert element, f"there is nothing to click that says {text!r}"
        element.click()
        wait_until(lambda: self.find("html") != before, 40, "another page")
        wait_until(lambda: self.run("return document.readyState") == "complete", 20, "the page is there")

    def type(self, selector: str, text: str) -> None:
        field = self.find(selector)
        field.clear()
        field.send_keys(text)

    def theme(self, name: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": name}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def width(self, pixels: int) -> None:
        metrics = {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": pixels < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def errors(self) -> list[str]:
        """Return the browser's errors since the last call, but for responses with an error status."""
        log: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [line["message"] for line in log if "the server responded with a status of" not in line["message"]]

    def save(self, path: Path, width: int, height: int) -> None:
        """Write the page from its top, of this width and height in pixels, as a PNG file."""
        clip = {"x": 0, "y": 0, "scale": 1, "width": width, "height": height}
        options = {"captureBeyondViewport": True, "clip": clip}
        image = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"]
        path.write_bytes(base64.b64decode(image))

    def require_sound(self, name: str) -> None:
        """Require of the page, in both themes and all widths: no error, no violation of axe's rules, no overflow."""
        folder = Path(tempfile.gettempdir()) / "screenshots"
        for theme in THEMES:
            self.theme(theme)
            for width, pixels in WIDTHS.items():
                self.width(pixels)
                overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
                wait_until(lambda: self.run(overflow) <= 0, 5, f"{name} fits {width}")  # noqa: B023
                if width == "tablet":
                    continue
                violations = Axe().run(self.driver)["violations"]
                barriers = [(rule["id"], [node["html"][:200] for node in rule["nodes"][:3]]) for rule in violations]
                assert barriers == [], (name, theme, width)
                folder.mkdir(exist_ok=True)
                height = self.run("return document.documentElement.scrollHeight")
                self.save(folder / f"{name}-{width}-{theme}.png", pixels, height)
        self.theme("light")
        self.width(1280)
        assert self.errors() == [], name


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium = next(filter(None, map(shutil.which, ("google-chrome", "chromium", "chromium-browser"))), None)
    assert chromium, "a browser is needed: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (*QUIET.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver: webdriver.Chrome) -> Browser:
    """Chromium with an empty page, no cookies, and the width of a desktop."""
    driver.get("about:blank")
    driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
    browser = Browser(driver)
    browser.width(1280)
    browser.theme("light")
    browser.errors()
    return browser
