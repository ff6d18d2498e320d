"""Following the registry: swaps, failed loads, and what comes back after them."""

import shutil
from pathlib import Path

import pytest
import skops.io
from flask import Flask
from sklearn.linear_model import LogisticRegression

from labstack import registry
from labstack.api.app import create_app
from labstack.api.service import Service
from labstack.contract import Contract
from tests.conftest import IRIS_ROW, Lab


@pytest.fixture
def service(lab: Lab, tmp_path: Path) -> Service:
    """A service with a cache of its own that has looked at the registry once."""
    app: Flask = create_app(lab.settings(api_cache_dir=tmp_path / "cache"))
    service: Service = app.extensions["labstack"]
    service.follower.sync()
    return service


def folder_of(service: Service, model: str, version: int) -> Path:
    [folder] = (service.settings.api_cache_dir / model).glob(f"{version}-*")
    return folder


def damaged(service: Service, lab: Lab, model: str) -> Path:
    """The cached folder of version 2 while version 1 is production, for a test to damage before its promotion."""
    registry.promote(lab.client, lab.engine, model, 2, reason="fetch it")
    service.follower.sync()
    registry.promote(lab.client, lab.engine, model, 1, reason="back")
    service.follower.sync()
    return folder_of(service, model, 2)


def test_a_promotion_is_followed(service: Service, lab: Lab, model: str) -> None:
    assert model not in service.follower.lineups
    registry.promote(lab.client, lab.engine, model, 1, reason="first")
    service.follower.sync()
    before = service.follower.lineups[model]
    registry.promote(lab.client, lab.engine, model, 2, reason="second")
    service.follower.sync()
    assert (before.production.version, service.follower.lineups[model].production.version) == (1, 2)


def test_what_has_not_changed_is_not_loaded_again(service: Service) -> None:
    before = service.follower.lineups["iris"]
    service.follower.sync()
    assert service.follower.lineups["iris"] is before


def test_a_model_made_anew_under_its_old_name_is_another_version(service: Service, lab: Lab) -> None:
    name = "made_anew"
    lab.train("iris", model=name)
    service.follower.sync()
    before = service.follower.lineups[name].production
    lab.client.delete_registered_model(name)
    lab.train("iris", model=name, params={"max_iter": 5000, "C": 0.01})
    service.follower.sync()
    after = service.follower.lineups[name].production
    assert (before.version, after.version) == (1, 1)
    assert before.source != after.source
    lab.client.delete_registered_model(name)


@pytest.mark.parametrize("file", ["contract.json", "model.skops"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_version_that_cannot_be_loaded_changes_nothing_and_is_visible(
    service: Service, lab: Lab, model: str, file: str, damage: str
) -> None:
    path = damaged(service, lab, model) / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:50])
    registry.promote(lab.client, lab.engine, model, 2, reason="bad")
    service.follower.sync()
    assert service.follower.lineups[model].production.version == 1
    assert f"Version 2 of '{model}' could not be loaded" in service.follower.following.load_errors[model]
    assert "iris" in service.follower.lineups
    [state] = service.control.states()
    assert any("Version 2" in error for error in state.errors)


def test_a_version_that_does_not_predict_its_sample_is_refused(service: Service, lab: Lab, model: str) -> None:
    folder = damaged(service, lab, model)
    contract = Contract.read(folder)
    contract.model_copy(update={"sample": contract.sample.model_copy(update={"output": "tulip"})}).write(folder)
    registry.promote(lab.client, lab.engine, model, 2, reason="lying")
    service.follower.sync()
    assert service.follower.lineups[model].production.version == 1
    assert "for its own sample, and predicted 'tulip'" in service.follower.following.load_errors[model]


class Surprise(LogisticRegression):  # type: ignore[misc]
    """An estimator from outside scikit-learn."""


def test_a_version_with_foreign_types_is_refused(service: Service, lab: Lab, model: str) -> None:
    folder = damaged(service, lab, model)
    skops.io.dump(Surprise(), folder / "model.skops")
    registry.promote(lab.client, lab.engine, model, 2, reason="foreign")
    service.follower.sync()
    assert service.follower.lineups[model].production.version == 1
    assert "Surprise" in service.follower.following.load_errors[model]


def test_a_model_that_was_never_a_package_of_ours_harms_no_other(service: Service, lab: Lab, model: str) -> None:
    source = str(lab.client.get_experiment("0").artifact_location)
    lab.client.create_model_version(model, source + "/nothing", await_creation_for=0)
    registry.promote(lab.client, lab.engine, model, 4, reason="foreign")
    service.follower.sync()
    assert model not in service.follower.lineups
    assert model in service.follower.following.load_errors
    assert service.lineup("iris").production.version == 1


def test_a_vanished_cache_is_filled_again(service: Service, lab: Lab, model: str) -> None:
    shutil.rmtree(service.settings.api_cache_dir)
    registry.promote(lab.client, lab.engine, model, 1, reason="first")
    service.follower.sync()
    assert service.follower.lineups[model].production.version == 1
    assert [path.name for path in (service.settings.api_cache_dir / model).iterdir()] == [
        folder_of(service, model, 1).name
    ]


def test_predictions_warn_of_nothing(service: Service) -> None:
    """A scikit-learn model that was fitted on a frame warns at each array, unless it is told not to."""
    served = service.lineup("iris").production
    from labstack.contract import to_matrix

    assert served.predictor.predict(to_matrix(served.contract, [IRIS_ROW])).outputs == ["setosa"]
