"""The console in Chromium: every state of it, and every move of an operator."""

import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from labstack.registry import moves
from labstack.registry.roles import Rollout, read_roles
from labstack.store import audit, datasets
from tests.browser.conftest import Browser
from tests.conftest import Lab, Process, Relay, ask, free_port, run_api, run_mlflow, wait_until

TOKEN = "the-operators-token"  # noqa: S105


@pytest.fixture(scope="module")
def followed(lab: Lab) -> str:
    """A model with three versions that differ, version 2 in production, version 1 previous."""
    name = f"flowers_{time.monotonic_ns()}"
    for strength in (1.0, 2.0, 0.5):
        lab.train("iris", model=name, params={"C": strength, "max_iter": 1000})
    if read_roles(lab.registry, name).production != 1:
        moves.promote(lab.registry, lab.engine, name, 1, reason="the first")
    moves.promote(lab.registry, lab.engine, name, 2, reason="it looks better")
    return name


@contextmanager
def api_of(lab: Lab, folder: Path, model: str, **settings: Any) -> Iterator[Process]:
    own: dict[str, Any] = {"mlflow_tracking_uri": lab.tracking_uri, "lab_database_url": f"sqlite:///{folder}/lab.db"}
    own |= {"default_model_name": model, "drift_minimum_rows": 100, "drift_window_seconds": 600}
    with run_api(folder, **own | settings) as api:
        yield api


@pytest.fixture(scope="module")
def api(lab: Lab, followed: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with api_of(lab, tmp_path_factory.mktemp("api"), followed, lab_database_url=lab.database_url) as process:
        yield process


def predict(lab: Lab, api: Process, number: int, *, seed: int = 1, **shifts: float) -> list[str]:
    """Make predictions for rows like those in training; return their request ids."""
    rng = random.Random(seed)  # noqa: S311
    rows = list(datasets.read(lab.engine, "iris").dicts())
    ids = []
    for _ in range(number):
        row = dict(rng.choice(rows))
        row.pop("species")
        for name, value in row.items():
            row[name] = round(float(str(value)) + rng.gauss(0, 0.02) + shifts.get(name, 0), 3)
        ids.append(ask(f"{api.url}/predict", row).json["request_id"])

    def counted() -> int:
        return sum(version["rows"] for version in ask(f"{api.url}/drift").json["versions"])

    wait_until(lambda: counted() >= number, 10, "all is counted")
    return ids


def reset(lab: Lab, api: Process, model: str) -> None:
    """Move the roles back: version 2 in production, version 1 previous, no canary."""
    roles = read_roles(lab.registry, model)
    if roles.canary is not None:
        moves.stop_canary(lab.registry, lab.engine, model, reason="reset")
    for version in (1, 2):
        if read_roles(lab.registry, model).production not in (version, 2):
            moves.promote(lab.registry, lab.engine, model, version, reason="reset")
    ask(f"{api.url}/admin/reload", b"", "POST")


def test_a_lab_that_serves(browser: Browser, lab: Lab, api: Process, followed: str) -> None:
    ids = predict(lab, api, 300, petal_length=2.0)
    ask(f"{api.url}/feedback", [{"request_id": ident, "outcome": "virginica"} for ident in ids[:40]])
    browser.open(f"{api.url}/console")
    for text in ("Version 2", "version 1", "drifted", "accuracy", ids[-1][:8], "it looks better", "passed"):
        browser.wait_for(text)
    wait_until(lambda: len(browser.all("[data-chart] svg.main-svg")) >= 7, 20, "the charts are drawn")
    links = [link.get_attribute("href") or "" for link in browser.all("#versions ~ .wide a, [data-live=versions] a")]
    assert any("/#/experiments/" in link and "/runs/" in link for link in links)
    browser.require_sound("serving")


def test_the_contracts_form_predicts_and_shows_errors(browser: Browser, api: Process) -> None:
    browser.open(f"{api.url}/console")
    browser.type("[name=petal_length]", "1.4")
    browser.find("[data-try] button").click()
    wait_until(lambda: browser.find("output").text, 10, "an answer")
    assert "%" in browser.find("output").text
    assert "by version 2 (production)" in browser.find("output").text
    browser.type("[name=petal_length]", "99")
    browser.find("[data-try] button").click()
    wait_until(lambda: "out of the range" in browser.find("output").text, 10, "a warning")
    browser.run("document.querySelector('[name=petal_length]').required = false")
    browser.find("[name=petal_length]").clear()
    browser.find("[data-try] button").click()
    wait_until(lambda: "petal_length is null" in browser.find("output").text, 10, "what is wrong")
    assert browser.errors() == []


def test_operators_start_step_and_end_a_canary(browser: Browser, lab: Lab, api: Process, followed: str) -> None:
    reset(lab, api, followed)
    browser.open(f"{api.url}/console")
    link = browser.find("a[href*='move=canary'][href$='version=3']")
    assert link.text.startswith("Try as canary")
    browser.open(str(link.get_attribute("href")))
    assert "becomes the canary; production stays version 2" in browser.text
    browser.require_sound("confirm")
    browser.type("#weight", "40")
    browser.type("#reason", "let us see")
    browser.click("Start the canary")
    browser.wait_for("Done.")
    roles = read_roles(lab.registry, followed)
    assert (roles.production, roles.canary) == (2, 3)
    assert roles.rollout is not None
    assert (roles.rollout.weight, roles.rollout.mode) == (0.4, "split")
    predict(lab, api, 100)
    browser.open(f"{api.url}/console")
    browser.find("#evidence")
    browser.wait_for("of at least 200 requests")
    browser.require_sound("canary")
    browser.click("Change share")
    browser.type("#weight", "75")
    browser.click("Change the share")
    browser.wait_for("split 75%")
    browser.click("Remove")
    assert "is removed; production, version 2, answers every request again" in browser.text
    browser.click("Remove the canary")
    browser.wait_for("Done.")
    assert read_roles(lab.registry, followed).canary is None
    newest = audit.role_moves(lab.engine, followed)[0]
    assert (newest.role, newest.actor) == ("canary", "operator at 127.0.0.1")
    assert "let us see" in [entry.reason for entry in audit.role_moves(lab.engine, followed)]


def test_operators_accept_a_canary_roll_back_and_reload(
    browser: Browser, lab: Lab, api: Process, followed: str
) -> None:
    reset(lab, api, followed)
    moves.start_canary(lab.registry, lab.engine, followed, 3, Rollout(0.5, "split"), reason="try")
    ask(f"{api.url}/admin/reload", b"", "POST")
    browser.open(f"{api.url}/console")
    browser.click("Accept")
    assert "Version 3 becomes production and answers every request; version 2 becomes previous" in browser.text
    browser.click("Accept the canary")
    browser.wait_for("Version 3")
    assert read_roles(lab.registry, followed).production == 3
    browser.click("Roll back to 2")
    browser.click("Roll back")
    browser.wait_for("The previous version is production again. Production is version 2.")
    assert read_roles(lab.registry, followed).production == 2
    browser.click("Reload")
    assert "No role moves" in browser.text
    browser.click("Reload")
    browser.wait_for("Every worker follows the registry.")
    assert browser.errors() == []


def test_after_a_promotion_each_role_keeps_its_requests(
    browser: Browser, lab: Lab, followed: str, tmp_path: Path
) -> None:
    model = f"{followed}_many"
    lab.client.create_registered_model(model)
    for number in [*(1, 2, 3) * 5]:
        original = lab.client.get_model_version(followed, str(number))
        lab.client.create_model_version(model, str(original.source), original.run_id, await_creation_for=0)
    moves.promote(lab.registry, lab.engine, model, 1, reason="the first")
    with api_of(lab, tmp_path, model, lab_database_url=lab.database_url) as api:
        predict(lab, api, 150)
        moves.start_canary(lab.registry, lab.engine, model, 2, Rollout(1, "split"), reason="try")
        ask(f"{api.url}/admin/reload", b"", "POST")
        predict(lab, api, 60, petal_length=0.3)
        moves.accept_canary(lab.registry, lab.engine, model, 2, reason="it is better")
        ask(f"{api.url}/admin/reload", b"", "POST")
        predict(lab, api, 120)
        browser.open(f"{api.url}/console")
        browser.wait_for("270 requests to production")
        browser.wait_for("150 by version 1, 120 by version 2")
        browser.wait_for("Of the 180 rows that version 2 predicted")
        wait_until(lambda: len(browser.all("[data-chart] svg.main-svg")) >= 7, 20, "the charts are drawn")
        browser.require_sound("promoted")
        browser.click("Older versions")
        browser.wait_for("Newest versions")
        browser.require_sound("older-versions")


def test_the_page_shows_why_operators_are_off(browser: Browser, lab: Lab, followed: str, tmp_path: Path) -> None:
    with api_of(lab, tmp_path, followed, api_host="0.0.0.0") as api:  # noqa: S104
        browser.open(f"{api.url}/console")
        browser.wait_for("endpoints are off: the API listens on 0.0.0.0, and API_ADMIN_TOKEN is not set")
        browser.require_sound("operators-off")


def test_a_move_is_refused_when_roles_moved_after_its_page_was_loaded(
    browser: Browser, lab: Lab, api: Process, followed: str
) -> None:
    reset(lab, api, followed)
    browser.open(f"{api.url}/console/confirm?move=rollback&model={followed}")
    moves.promote(lab.registry, lab.engine, followed, 3, reason="by another operator")
    browser.click("Roll back")
    browser.wait_for("Not done")
    assert "have moved since the page was loaded" in browser.text
    assert read_roles(lab.registry, followed).production == 3
    browser.require_sound("refused")
    browser.click("Back to the console")
    browser.wait_for("Production")


def test_without_the_token_a_visitor_moves_no_role_and_sees_no_inputs(
    browser: Browser, lab: Lab, followed: str, tmp_path: Path
) -> None:
    with api_of(lab, tmp_path, followed, api_admin_token=TOKEN) as api:
        ident = predict(lab, api, 1)[0]
        browser.open(f"{api.url}/console")
        browser.wait_for("For operators")
        assert ident not in browser.text
        assert "Roll back" not in browser.text
        browser.require_sound("visitor")
        browser.open(f"{api.url}/console/confirm?move=reload&model={followed}")
        browser.wait_for("Sign in with the operators")
        browser.open(f"{api.url}/console")
        browser.type("#token", "not the token")
        browser.click("Sign in")
        browser.wait_for("This is not the operators' token")
        browser.click("Back to the console")
        browser.type("#token", TOKEN)
        browser.click("Sign in")
        browser.wait_for(ident)
        [cookie] = browser.driver.get_cookies() or browser.run("return []") or [None]
        assert cookie is not None
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        assert TOKEN not in cookie["value"]
        browser.click("Reload")
        browser.click("Reload")
        browser.wait_for("followed by 2 workers")
        browser.click("Sign out")
        browser.wait_for("For operators")
        assert TOKEN not in api.log.read_text()


def test_a_page_of_another_site_moves_no_role(lab: Lab, api: Process, followed: str) -> None:
    roles = read_roles(lab.registry, followed)
    form = f"move=reload&model={followed}&roles=x".encode()
    headers = {"Origin": "http://evil.example", "Content-Type": "application/x-www-form-urlencoded"}
    assert ask(f"{api.url}/console/move", form, "POST", headers).status == 403
    assert read_roles(lab.registry, followed) == roles


def test_a_lab_without_a_model(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    with (
        run_mlflow(tmp_path / "mlflow", free_port()) as server,
        run_api(tmp_path, until="/health", mlflow_tracking_uri=server.url) as api,
    ):
        browser.open(f"{api.url}/console")
        browser.wait_for("Nothing is served yet")
        browser.wait_for("./run_all.sh train")
        browser.wait_for("The audit is empty")
        browser.require_sound("empty")


def test_a_lab_that_comes_up(browser: Browser, tmp_path: Path) -> None:
    nobody = f"http://localhost:{free_port()}"
    with run_api(tmp_path, until="/health", mlflow_tracking_uri=nobody) as api:
        browser.open(f"{api.url}/console")
        browser.wait_for("Starting.")
        browser.require_sound("starting")


def test_an_unreachable_registry(browser: Browser, lab: Lab, followed: str, tmp_path: Path) -> None:
    with Relay(lab.tracking_uri) as relay:
        settings: dict[str, Any] = {"mlflow_tracking_uri": relay.url, "follow_interval_seconds": 0.5}
        with api_of(lab, tmp_path, followed, **settings) as api:
            relay.close()
            wait_until(lambda: ask(f"{api.url}/health").json["status"] == "degraded", 20, "it is degraded")
            browser.open(f"{api.url}/console")
            browser.wait_for("Degraded.")
            browser.wait_for("cannot be reached")
            browser.wait_for("Version ")
            browser.require_sound("degraded")
            relay.open()


def test_a_broken_database(browser: Browser, lab: Lab, followed: str, tmp_path: Path) -> None:
    (tmp_path / "lab.db").write_text("Dear diary, " * 1000)
    with api_of(lab, tmp_path, followed) as api:
        browser.open(f"{api.url}/console")
        browser.wait_for("file is not a database")
        browser.wait_for("Try it")
        browser.require_sound("no-database")


def test_the_page_refreshes_and_keeps_what_is_in_use(browser: Browser, lab: Lab, api: Process, followed: str) -> None:
    reset(lab, api, followed)
    browser.open(f"{api.url}/console")
    looked = "return document.querySelector('footer time').textContent"
    before = browser.run(looked)
    browser.type("[name=petal_length]", "3.21")
    moves.rollback(lab.registry, lab.engine, followed, reason="behind the page's back")
    ask(f"{api.url}/admin/reload", b"", "POST")
    wait_until(lambda: browser.run(looked) != before, 20, "it looks again")
    browser.wait_for("behind the page's back")
    assert browser.find("[name=petal_length]").get_attribute("value") == "3.21"
    assert browser.run("return document.activeElement.name") == "petal_length"
    assert browser.errors() == []


def test_the_page_works_by_keyboard(browser: Browser, api: Process) -> None:
    """Tab reaches first the link past the menu, and everything that it reaches shows the focus."""
    browser.open(f"{api.url}/console")
    reached = "return document.activeElement.className + '|' + getComputedStyle(document.activeElement).outlineStyle"
    seen = []
    for _ in range(12):
        browser.driver.execute_cdp_cmd(
            "Input.dispatchKeyEvent", {"type": "keyDown", "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}
        )
        seen.append(browser.run(reached))
    assert seen[0].startswith("skip|")
    assert all(element.split("|")[1] not in ("", "none") for element in seen)
    assert browser.run("return document.activeElement !== document.body")


def test_without_javascript_only_the_charts_are_missing(
    browser: Browser, lab: Lab, api: Process, followed: str
) -> None:
    reset(lab, api, followed)
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.driver.get(f"{api.url}/console/confirm?move=reload&model={followed}")
        [button] = browser.all("form button")
        button.click()
        [note] = browser.all("[role=status]")
        assert "Every worker follows" in note.text
        assert browser.all("noscript")
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_the_page_of_the_api_sends_requests(browser: Browser, api: Process) -> None:
    browser.open(f"{api.url}/docs")
    browser.require_sound("docs")
    details = browser.find("details")
    details.find_element("css selector", "summary").click()
    details.find_element("css selector", "button").click()
    wait_until(lambda: "Status 200" in details.text, 10, "an answer")
    assert json.loads(details.find_element("css selector", "output pre").text)["prediction"]["class"]
    body = details.find_element("css selector", "textarea")
    body.clear()
    body.send_keys("{}")
    details.find_element("css selector", "button").click()
    wait_until(lambda: "Status 422" in details.text, 10, "an error")
    assert browser.errors() == []


def test_pages_load_nothing_from_other_hosts(browser: Browser, api: Process) -> None:
    for path in ("/console", "/docs"):
        browser.open(api.url + path)
        browser.find("h1")
        loaded = browser.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert loaded
        assert all(name.startswith((api.url, "data:")) for name in loaded), loaded
        policy = ask(api.url + path).headers["Content-Security-Policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy


@pytest.mark.skipif("CONSOLE_IMAGE" not in os.environ, reason="CONSOLE_IMAGE names the file of the README's screenshot")
def test_the_readmes_screenshot(browser: Browser, lab: Lab, tmp_path: Path) -> None:
    """A canary with a minute of traffic; run this test alone, as it moves the roles of iris."""
    for strength in (2.0, 0.5):
        lab.train("iris", params={"C": strength, "max_iter": 1000})
    if read_roles(lab.registry, "iris").production != 2:
        moves.promote(lab.registry, lab.engine, "iris", 2, reason="more accurate on held-out rows")
    moves.start_canary(lab.registry, lab.engine, "iris", 3, Rollout(0.25, "split"), reason="less regularization")
    with api_of(lab, tmp_path, "iris", lab_database_url=lab.database_url, drift_window_seconds=60) as api:
        for second in range(60):
            predict(lab, api, 20 + 5 * (second % 7), seed=second)
            time.sleep(0.5)
        browser.open(f"{api.url}/console")
        wait_until(lambda: len(browser.all("[data-chart] svg.main-svg")) >= 2, 20, "the charts are drawn")
        end = browser.run("return document.querySelector('#drift').closest('section').offsetTop")
        browser.save(Path(os.environ["CONSOLE_IMAGE"]), 1280, end)
