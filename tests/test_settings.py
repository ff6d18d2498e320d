"""Settings, and `.env.example`, which documents them."""

import re
from pathlib import Path

import pytest

from labstack.settings import ROOT, Settings, load, require_operators_token


def documented() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return {match[1]: match[2] for line in lines if (match := re.fullmatch(r"#([A-Z_]+)=(.*)", line))}


def compose_variables() -> dict[str, str]:
    """Each variable that the Compose file reads, with its default there; empty where the service has the default."""
    text = (ROOT / "docker/docker-compose.yml").read_text()
    defaults = dict(re.findall(r"\$\{([A-Z_]+):-((?:[^${}]|\$\{[^}]*\})*)\}", text))
    assert set(defaults) == set(re.findall(r"\$\{?([A-Z_]+)", text)), "a variable of the Compose file has no default"
    return defaults


def test_env_example_lists_every_setting_and_nothing_else() -> None:
    assert set(documented()) == {name.upper() for name in Settings.model_fields} | set(compose_variables())


def test_env_example_shows_the_defaults_of_the_compose_file() -> None:
    own = {name: default for name, default in compose_variables().items() if default and "$" not in default}
    assert len(own) >= 10
    assert {name: documented()[name] for name in own} == own


def test_the_compose_file_passes_on_all_settings_but_those_that_its_images_set() -> None:
    _, _, local_only = (ROOT / ".env.example").read_text().partition("# --- Local processes only")
    kept = set(re.findall(r"^#([A-Z_]+)=", local_only, re.MULTILINE))
    assert set(documented()) - kept == set(compose_variables())


@pytest.mark.parametrize("name", Settings.model_fields)
def test_env_example_shows_the_default(name: str) -> None:
    default = getattr(Settings(), name)
    shown = documented()[name.upper()]
    if str(ROOT) in str(default):
        assert "/path/to/" in shown
    else:
        assert shown == (
            ""
            if default is None
            else str(default).lower()
            if isinstance(default, bool)
            else ",".join(f"{number:g}" for number in (default if isinstance(default, tuple) else (default,)))
            if isinstance(default, float | tuple)
            else str(default)
        )


def test_the_tracking_uri_follows_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_PORT", "6001")
    assert Settings().mlflow_tracking_uri == "http://localhost:6001"


def test_canary_steps_ascend_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_STEPS", "0.2, 1")
    assert load().canary_steps == (0.2, 1)
    for wrong in ("0.5", "0.5,0.2,1", "0,1", "half"):
        monkeypatch.setenv("CANARY_STEPS", wrong)
        with pytest.raises(SystemExit, match="CANARY_STEPS"):
            load()


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_PORT", "")
    assert Settings().api_port == 5002


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("API_PORT=6001\nAPI_WORKERS=3\n")
    monkeypatch.setenv("LAB_ENV_FILE", str(tmp_path / "env"))
    monkeypatch.setenv("API_PORT", "6002")
    settings = load()
    assert (settings.api_port, settings.api_workers) == (6002, 3)


def test_each_wrong_setting_is_named_on_a_line_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_PORT", "hush-hush")
    monkeypatch.setenv("API_WORKERS", "0")
    with pytest.raises(SystemExit) as exit_:
        load()
    lines = str(exit_.value).splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["MLFLOW_PORT", "API_WORKERS"]
    assert "hush" not in str(exit_.value)


def test_the_operators_token_is_not_shown() -> None:
    assert "hush" not in repr(Settings(api_admin_token="hush"))  # noqa: S106


@pytest.mark.parametrize("bind", ["0.0.0.0", "192.168.1.4", "::"])  # noqa: S104
def test_beyond_loopback_the_api_requires_a_token(bind: str) -> None:
    with pytest.raises(SystemExit, match="API_ADMIN_TOKEN"):
        require_operators_token(Settings(api_bind=bind))
    require_operators_token(Settings(api_bind=bind, api_admin_token="hush"))  # noqa: S106
    require_operators_token(Settings())
