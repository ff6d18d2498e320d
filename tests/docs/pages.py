"""The README and the pages of docs/ as text, for tests that hold them to the code."""

import re

import yaml

from labstack.settings import ROOT

README = (ROOT / "README.md").read_text()


def page(name: str) -> str:
    """Return the text of a page of docs/."""
    return (ROOT / "docs" / f"{name}.md").read_text()


def names() -> list[str]:
    """The names of the pages of docs/, in the order of the site."""
    entries = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    return [file.removesuffix(".md") for entry in entries for file in entry.values()]


def section(text: str, title: str) -> str:
    """Return the part of a page under a heading of level 2, up to the next one."""
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def commands() -> list[tuple[str, str]]:
    """Every shell block of the README, then of docs/, each with the JSON that is shown as its answer, or ""."""
    pages = [README, *map(page, names())]
    blocks = [re.findall(r"```bash\n(.*?)```(?:\n\n```json\n(.*?)```)?", text, re.DOTALL) for text in pages]
    return [block for page_blocks in blocks for block in page_blocks]
