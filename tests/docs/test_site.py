"""The pages of docs/ build into a site that needs no network, and every link and anchor leads somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from labstack.settings import ROOT
from tests.docs.pages import README, names, page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert (built.returncode, built.stderr) == (0, "")
    return folder


def test_every_page_is_built(site: Path) -> None:
    assert {path.stem for path in site.glob("*.html")} == {*names(), "404"}


def test_the_site_loads_nothing_from_the_network(site: Path) -> None:
    for built in site.glob("*.html"):
        loaded = re.findall(r"""<(?:script|link|img|iframe)[^>]*?(?:src|href)="([^"]*)\"""", built.read_text())
        assert [url for url in loaded if re.match(r"(?:https?:)?//", url)] == [], built


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_the_readmes_links_lead_somewhere() -> None:
    links = re.findall(r"\[[^\]]*\]\(([^)\s#]*)#?([^)\s]*)\)", README)
    assert links
    for target, anchor in links:
        path = ROOT / target
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(page(path.stem)), (target, anchor)
