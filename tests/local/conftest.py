"""The lab as processes of this machine, made from nothing: minutes, so only when it is asked for."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--local"):
        return
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason="a whole lab is tested by: ./run_all.sh test tests/local --local"))
