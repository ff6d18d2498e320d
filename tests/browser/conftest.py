"""What the browser tests share: Chromium, and pages that must hold in every state."""

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
    """Chromium, and what a person does with it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)
        wait_until(lambda: self.run("return document.readyState") == "complete", 20, "the page is there")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)  # type: ignore[no-untyped-call]

    def find(self, selector: str) -> WebElement:
        """The first element of a selector, as soon as there is one."""
        found: WebElement = wait_until(lambda: self.all(selector), 15, f"{selector} is on the page")[0]
        return found

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    @property
    def text(self) -> str:
        """All that is written on the page."""
        return str(self.run("return document.body.innerText"))

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.text, 20, f"the page says {text!r}")

    def click(self, text: str) -> None:
        """Click the link or the button of a text, and wait for the page that follows."""
        before = self.find("html")
        element = self.run(
            "const found = [...document.querySelectorAll('button'), ...document.querySelectorAll('a')]"
            ".find((one) => one.checkVisibility() && one.innerText.startsWith(arguments[0]));"
            "found?.scrollIntoView({block: 'center'}); return found",
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
        """What the browser complained of since it was asked last; answers that are errors are pages too."""
        log: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [line["message"] for line in log if "the server responded with a status of" not in line["message"]]

    def require_sound(self, name: str) -> None:
        """The page, in both themes and on any width: no complaint, no barrier, nothing beyond the edge."""
        folder = Path(tempfile.gettempdir()) / "screenshots"
        for theme in THEMES:
            self.theme(theme)
            for width, pixels in WIDTHS.items():
                self.width(pixels)
                beyond = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
                wait_until(lambda: self.run(beyond) <= 0, 5, f"{name} fits {width}")  # noqa: B023
                if width == "tablet":
                    continue
                found = Axe().run(self.driver)["violations"]
                barriers = [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found]
                assert barriers == [], (name, theme, width)
                folder.mkdir(exist_ok=True)
                height = self.run("return document.documentElement.scrollHeight")
                shot = {
                    "captureBeyondViewport": True,
                    "clip": {"x": 0, "y": 0, "scale": 1} | {"width": pixels, "height": height},
                }
                image = self.driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"]

                (folder / f"{name}-{width}-{theme}.png").write_bytes(base64.b64decode(image))
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
    """Chromium with an empty page, nobody's cookies, and a desk's width."""
    driver.get("about:blank")
    driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
    found = Browser(driver)
    found.width(1280)
    found.theme("light")
    found.errors()
    return found
