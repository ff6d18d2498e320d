"""The manifest: the same lab makes the same text, and its status says what is missing."""

import json
from pathlib import Path
from typing import Any

import pytest

from labstack.registry import manifest, moves
from labstack.registry.client import MlflowRest
from labstack.registry.manifest import Manifest
from tests.conftest import Lab, free_port


def made(lab: Lab, **settings: Any) -> Manifest:
    return manifest.make(lab.registry, lab.settings(**settings))


def test_it_names_versions_containers_and_settings(lab: Lab, tmp_path: Path) -> None:
    value = json.loads(manifest.text(made(lab)))
    assert value["readiness"] == {"status": "ready", "reason": "version 1 of 'iris' is production"}
    [iris] = [version for version in value["models"] if version["name"] == "iris"]
    assert (iris["version"], iris["uri"]) == (1, "models:/iris/1")
    assert iris["metrics"]["accuracy"] > 0.9
    assert iris["gates"]["parity"].startswith("passed: ")
    assert {name: service["container"] for name, service in value["services"].items()} == {
        "api": "api",
        "mlflow": "server_mlflow",
    }
    assert "DEFAULT_MODEL_NAME=iris" in value["environment"].splitlines()
    path = manifest.write(made(lab), tmp_path / "new")
    assert path.read_text() == manifest.text(made(lab))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["deployment_manifest.json"]
    assert Manifest.model_validate_json(path.read_text()) == made(lab)


def test_a_secret_is_not_in_it(lab: Lab) -> None:
    text = manifest.text(made(lab, api_url="http://me:hush@api:5002", api_admin_token="hush"))  # noqa: S106
    assert "hush" not in text


def test_the_status_says_what_is_missing(lab: Lab, model: str) -> None:
    def readiness(name: str) -> tuple[str, str]:
        readiness = made(lab, default_model_name=name).readiness
        return readiness.status, readiness.reason

    never = "no version of 'nobody' was ever registered; train one: labstack train"
    assert readiness("nobody") == ("no_production_model", never)
    assert readiness(model) == ("promotion_not_approved", f"version 3 of {model!r} awaits: labstack promote {model} 3")
    lab.registry.set_version_tag(model, 3, "labstack.gates", "failed")
    assert readiness(model) == ("promotion_not_approved", f"version 3 of {model!r} did not pass its gates")
    moves.promote(lab.registry, lab.engine, model, 2, reason="first")
    assert readiness(model) == ("ready", f"version 2 of {model!r} is production")
    lab.client.delete_model_version(model, "2")
    assert readiness(model)[0] == "promotion_not_approved"


def test_an_unreachable_registry_is_reported(lab: Lab) -> None:
    away = MlflowRest(f"http://localhost:{free_port()}", retries=0)
    lost = manifest.make(away, lab.settings())
    assert (lost.readiness.status, lost.models) == ("mlflow_unavailable", ())
    assert "cannot be reached" in lost.readiness.reason


def test_unknown_fields_are_rejected(lab: Lab) -> None:
    value = json.loads(manifest.text(made(lab)))
    with pytest.raises(ValueError, match=r"readiness\.status"):
        Manifest.model_validate(value | {"readiness": {"status": "fine", "reason": ""}})
    with pytest.raises(ValueError, match="Extra inputs"):
        Manifest.model_validate(value | {"more": 1})
