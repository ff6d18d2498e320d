"""A registry, or a version, that never ends: serving goes on, health reports it, and recovers."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.api.conftest import copied, stored
from tests.conftest import IRIS_ROW, Lab, Process, Relay, ask, run_api, wait_until
from tests.hostile import endless, put


@contextmanager
def served(api: Process, path: str = "/predict") -> Iterator[None]:
    """Send predictions in this context; each is answered."""
    statuses: list[int] = []
    ended = threading.Event()

    def ask_on() -> None:
        while not ended.is_set():
            statuses.append(ask(api.url + path, IRIS_ROW).status)

    thread = threading.Thread(target=ask_on)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert len(statuses) > 20
    assert set(statuses) == {200}


def health(api: Process) -> dict[str, Any]:
    return dict(ask(f"{api.url}/health").json)


def test_a_registry_that_drips_is_a_fault_and_none_when_it_flows_again(lab: Lab, tmp_path: Path) -> None:
    with (
        Relay(lab.tracking_uri) as relay,
        run_api(tmp_path, mlflow_tracking_uri=relay.url, follow_interval_seconds=1, reload_timeout_seconds=30) as api,
    ):
        wait_until(lambda: health(api)["status"] == "ok", 20, "all is well")
        with served(api):
            relay.drips = True
            wait_until(lambda: health(api)["status"] == "degraded", 15, "health says so")
            wait_until(lambda: health(api)["registry"]["reachable"] is False, 15, "the registry counts as away")
            assert ask(f"{api.url}/ready").status == 200
            assert "labstack_registry_reachable" in ask(f"{api.url}/metrics").text
            assert ask(f"{api.url}/admin/reload", b"", "POST").status == 503
            relay.drips = False
            wait_until(lambda: health(api)["status"] == "ok", 30, "it follows again")
        assert ask(f"{api.url}/admin/reload", b"", "POST").status == 200


def test_a_version_that_never_loads_holds_up_nobody_for_longer_than_it_may(lab: Lab, tmp_path: Path) -> None:
    name = f"endless_{time.monotonic_ns()}"
    for _ in range(2):
        copied(lab, name, stored(lab, "iris", 1))
    put(stored(lab, name, 2), endless(4, 3, always=True))
    lab.registry.set_alias(name, "production", 1)
    try:
        with run_api(tmp_path, mlflow_tracking_uri=lab.tracking_uri, model_load_seconds=4) as api:
            with served(api, f"/models/{name}/predict"), served(api):
                lab.registry.set_alias(name, "production", 2)
                reload = ask(f"{api.url}/admin/reload", b"", "POST")
                assert (reload.status, reload.json["type"]) == (503, "urn:labstack:problem:reload-failed")
                assert "was not loaded and tried within 4 seconds" in reload.json["detail"]
                assert any("within 4 seconds" in fault for fault in health(api)["errors"])
                lab.registry.set_alias(name, "production", 1)
                assert ask(f"{api.url}/admin/reload", b"", "POST").status == 200
            assert health(api)["status"] == "ok"
    finally:
        lab.client.delete_registered_model(name)
