"""The `labstack` command, as people and scripts call it."""

import json
import os
import pty
import re
import select
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import labstack
from labstack.registry.roles import Roles, read_all_roles, read_roles
from labstack.store.audit import role_moves
from labstack.training import config
from tests.conftest import Lab, free_port, run_api

LINES = """
model: {model}
task: regression
data: {{dataset: student_exam_scores, target: exam_score}}
candidates: [{{estimator: sklearn.linear_model.Ridge, {candidate}}}]
metric: rmse
after_promotion: {hook}
"""


def write(
    folder: Path, model: str, candidate: str = "params: {alpha: 1}", hook: str = "nothing", more: str = ""
) -> Path:
    path = folder / f"{model}.yaml"
    path.write_text(LINES.format(model=model, candidate=candidate, hook=hook) + more)
    return path


def test_a_pipeline_file_is_trained_and_its_outcome_printed(lab: Lab, tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    done = lab.run("train", str(path), lab_outputs=tmp_path / "outputs")
    outcome = f"{name} version 1 is production: the model had no production version, rmse "
    assert (done.returncode, done.stdout.startswith(outcome)) == (0, True), done
    messages = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    steps = ["rows read", "fitted and evaluated", "packed", "gate", "gate", "registered", "promoted", "manifest"]
    assert messages == steps
    manifest = json.loads((tmp_path / "outputs" / "deployment_manifest.json").read_text())
    assert name in [entry["name"] for entry in manifest["models"]]
    again = lab.run("train", "--if-missing", str(path))
    assert again.stdout == f"{name} version 1 is production: it existed already\n"
    unchanged = lab.run("train", "--if-changed", "--json", str(path))
    [skipped] = json.loads(unchanged.stdout)
    assert (skipped["version"], skipped["run_id"], skipped["promoted"]) == (1, None, False)


def test_the_exit_code_reports_a_failed_gate(lab: Lab, tmp_path: Path, name: str) -> None:
    done = lab.run("train", "--json", str(write(tmp_path, name, more="gates: {thresholds: {r2: 0.999}}")))
    [outcome] = json.loads(done.stdout)
    assert (done.returncode, outcome["passed"], outcome["promoted"], outcome["version"]) == (3, False, False, 1)
    refused = lab.run("promote", name, "1")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "has not passed its gates: threshold r2 failed: r2 0.8" in refused.stderr
    forced = lab.run("promote", name, "1", "--force", "--reason", "we know better")
    assert (forced.returncode, forced.stdout.startswith(f"{name} version 1 is production; ")) == (0, True)
    assert role_moves(lab.engine, name)[0].reason == "we know better"
    entries = [row for row in json.loads(lab.run("status", name, "--audit", "--json").stdout) if row["model"] == name]
    assert [entry["what"] for entry in entries] == ["production: none → 1", "refused", "refused"]
    assert all("r2 0.8" in entry["why"] for entry in entries[1:])
    assert "we know better" in lab.run("status", "--audit").stdout


def test_approval_without_a_terminal_is_refused(lab: Lab, tmp_path: Path, name: str) -> None:
    done = lab.run("train", str(write(tmp_path, name, more="approval: ask")))
    assert (done.returncode, "it was not approved; to promote it later: labstack promote" in done.stdout) == (0, True)
    assert read_roles(lab.registry, name) == Roles()


@pytest.mark.parametrize(("answer", "production"), [("y", 1), ("n", None)])
def test_a_person_at_a_terminal_is_asked_for_approval(
    lab: Lab, tmp_path: Path, name: str, answer: str, production: int | None
) -> None:
    search = "search: {alpha: {low: 0.01, high: 10}}"
    path = write(tmp_path, name, search, more="approval: ask\nsearch: {trials: 5}")
    terminal, child_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "labstack.cli.main", "train", str(path)],
        env=lab.environment() | {"TERM": "xterm", "COLUMNS": "150"},
        stdin=child_end,
        stdout=child_end,
        stderr=child_end,
        start_new_session=True,
    )
    os.close(child_end)
    seen = b""
    answered = False
    while select.select([terminal], [], [], 60)[0]:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the other end was closed
            break
        seen += data
        if not answered and b"Make it production? [y/N]" in seen:
            os.write(terminal, answer.encode() + b"\n")
            answered = True
    os.close(terminal)
    assert process.wait(60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    for part in ("✓ rows read", "searching", "5/5", "✓  parity", "Make it production? [y/N]", "✓ registered"):
        assert part in text, (part, text)
    assert '"message"' not in text
    assert read_roles(lab.registry, name) == Roles(production=production)


def test_versions_are_promoted_and_rolled_back(lab: Lab, model: str) -> None:
    for number in ("1", "2", "3"):
        assert lab.run("promote", model, number, "--force").returncode == 0
    assert lab.run("rollback", model).stdout.startswith(f"{model} version 2 is production again; the API at ")
    assert lab.run("rollback", model, "--to", "1").stdout.startswith(f"{model} version 1 is production again")
    assert read_roles(lab.registry, model) == Roles(production=1, previous=2)
    assert "in production already: nothing to go back to" in lab.run("rollback", model, "--to", "1").stderr
    assert "has no version 9" in lab.run("promote", model, "9", "--force").stderr


def test_rollback_takes_only_an_earlier_production_version(lab: Lab, model: str) -> None:
    lab.run("promote", model, "1", "--force")
    refused = lab.run("rollback", model, "--to", "3")
    assert (refused.returncode, "Version 3 of" in refused.stderr, "never was production" in refused.stderr) == (
        1,
        True,
        True,
    )
    assert "no previous version to go back to" in lab.run("rollback", model).stderr


def test_a_canary_is_started_weighted_and_stopped(lab: Lab, model: str) -> None:
    assert "no production version to compare a canary with" in lab.run("canary", "start", model, "2").stderr
    lab.run("promote", model, "1", "--force")
    assert lab.run("canary", "start", model, "2").stdout.startswith(f"{model} version 2 is the canary, split 0.1; ")
    assert lab.run("canary", "weight", model, "0.5").stdout.startswith(f"{model} version 2 is the canary, split 0.5; ")
    [row] = [row for row in json.loads(lab.run("status", model, "--json").stdout) if row["version"] == 2]
    assert (row["role"], row["why"]) == ("canary, split 0.5", "canary, split 0.5")
    assert lab.run("canary", "weight", model, "1.5").returncode == 2
    assert lab.run("canary", "stop", model).stdout.startswith(f"{model} has no canary any more; ")
    assert "has no canary" in lab.run("canary", "weight", model, "0.1").stderr
    assert "has no canary" in lab.run("canary", "stop", model).stderr
    shadow = lab.run("canary", "start", model, "3", "--mode", "shadow", "--weight", "1")
    assert shadow.stdout.startswith(f"{model} version 3 is the canary, shadow 1; ")


def test_a_canary_must_take_the_fields_of_production(lab: Lab, tmp_path: Path, name: str) -> None:
    lab.train("student_exam", model=name)
    data = {"dataset": "student_exam_scores", "target": "exam_score", "drop": ["sleep_hours"]}
    lab.train("student_exam", model=name, data=data)
    refused = lab.run("canary", "start", name, "2")
    assert (refused.returncode, "cannot be a canary: it takes no field 'sleep_hours'" in refused.stderr) == (1, True)


def test_status_and_versions_are_tables_for_people_and_json_for_scripts(lab: Lab) -> None:
    table = lab.run("status").stdout
    assert re.search(r"^iris +production +1 +20\d\d-", table, re.MULTILINE)
    assert [row["role"] for row in json.loads(lab.run("status", "iris", "--json").stdout)] == ["production"]
    [version] = json.loads(lab.run("versions", "iris", "--json").stdout)
    assert (version["version"], version["role"], version["gates"]) == (1, "production", "passed")
    assert version["metrics"]["accuracy"] > 0.9
    assert re.search(r"^1 +production +passed", lab.run("versions", "iris").stdout, re.MULTILINE)
    assert "has no model 'irish'; it has: " in lab.run("status", "irish").stderr
    assert "no version of a model 'irish'" in lab.run("versions", "irish").stderr


def test_datasets_are_loaded_and_exported(lab: Lab, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/lab.db"
    text = "a,b\n1,x\n2.5,\n"
    (tmp_path / "mine.csv").write_text(f"# Two columns.\n{text}")

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return lab.run("data", *arguments, lab_database_url=database)

    assert run("list").stdout == "There is no dataset yet. Load one: labstack data load table.csv\n"
    assert run("load", str(tmp_path / "mine.csv")).stdout == "mine: 2 rows loaded, 2 in all, 2 columns\n"
    assert "There is a dataset 'mine' already; append to it" in run("load", str(tmp_path / "mine.csv")).stderr
    assert run("export", "mine").stdout == text
    more = run("load", str(tmp_path / "mine.csv"), "--append")
    assert more.stdout == "mine: 2 rows loaded, 4 in all, 2 columns\n"
    [summary] = json.loads(run("list", "--json").stdout)
    assert (summary["dataset"], summary["rows"], summary["description"]) == ("mine", 4, "Two columns.")
    numbers, labels = json.loads(run("describe", "mine", "--json").stdout)
    assert (numbers["min"], numbers["max"], numbers["missing"]) == (1.0, 2.5, 0)
    assert (labels["most"], labels["missing"]) == ({"x": 2}, 2)
    run("export", "mine", "--output", str(tmp_path / "out.csv"))
    assert (tmp_path / "out.csv").read_text() == text + "1,x\n2.5,\n"
    assert run("load", str(tmp_path / "none.csv")).returncode == 2
    assert "There is no dataset 'none'" in run("export", "none").stderr


def test_a_first_pipeline_is_written_checked_and_trained(lab: Lab, tmp_path: Path, name: str) -> None:
    path = tmp_path / "first.yaml"
    options = ["--dataset", "iris", "--target", "species", "--model", name]
    assert lab.run("pipeline", "init", *options, "--output", str(path)).returncode == 0
    assert "exists already. Nothing was written." in lab.run("pipeline", "init", *options, "--output", str(path)).stderr
    assert lab.run("pipeline", "init", *options).stdout == path.read_text()
    checked = lab.run("pipeline", "check", str(path))
    assert checked.stdout == f"{path} is valid: 4 features, 112 rows for training, 38 held out\n"
    parsed = config.read(str(path))
    assert (parsed.task, parsed.split_by, len(parsed.candidates)) == ("classification", "stratified", 2)
    path.write_text(path.read_text().replace("trials: 20", "trials: 3").replace("n_estimators: 100", "n_estimators: 5"))
    assert "is production: " in lab.run("train", str(path)).stdout
    broken = lab.run("pipeline", "check", "irish")
    assert (broken.returncode, "there are: iris, student_exam" in broken.stderr) == (1, True)


def test_the_manifest_is_printed_or_written(lab: Lab, tmp_path: Path) -> None:
    printed = lab.run("manifest").stdout
    assert json.loads(printed)["readiness"]["status"] == "ready"
    written = lab.run("manifest", "--output", str(tmp_path)).stdout.strip()
    assert Path(written).read_text() == printed
    away = json.loads(lab.run("manifest", mlflow_tracking_uri=f"http://localhost:{free_port()}").stdout)
    assert (away["readiness"]["status"], away["models"]) == ("mlflow_unavailable", [])


def test_the_api_reloads_after_a_promotion(lab: Lab, tmp_path: Path, name: str) -> None:
    with run_api(tmp_path, until="/health", mlflow_tracking_uri=lab.tracking_uri) as api:
        path = write(tmp_path, name, hook="reload")
        done = lab.run("train", str(path), api_url=api.url, ci="")
        assert f"the API at {api.url} has reloaded" in done.stderr
        refused = lab.run("canary", "start", name, "1", api_url=api.url, ci="")
        assert "is production; a canary is another version" in refused.stderr


def test_the_api_is_not_notified_in_ci(lab: Lab, model: str) -> None:
    skipped = lab.run("promote", model, "1", "--force", ci="true").stdout
    assert skipped.startswith(f"{model} version 1 is production; the API was not notified, as CI is set")
    unreachable = lab.run("promote", model, "2", "--force", ci="").stdout
    assert "cannot be reached, and reads the registry when it is back" in unreachable


@pytest.mark.parametrize(
    ("arguments", "settings", "reason"),
    [
        (["train", "irish"], {}, "there are: iris, student_exam"),
        (
            ["train", "iris"],
            {"mlflow_tracking_uri": f"http://localhost:{free_port()}", "startup_timeout_seconds": 0.1},
            "cannot be reached",
        ),
        (["train", "iris"], {"lab_database_url": "sqlite:////proc/nowhere/lab.db"}, "/proc/nowhere"),
        (["train", "iris"], {"lab_outputs": "/proc/nowhere"}, "/proc/nowhere"),
        (["status"], {"mlflow_tracking_uri": f"http://localhost:{free_port()}"}, "cannot be reached"),
        (["data", "list"], {"lab_database_url": "nonsense"}, "LAB_DATABASE_URL is not usable"),
    ],
)
def test_a_failure_is_reported_in_one_line(
    lab: Lab, arguments: list[str], settings: dict[str, str], reason: str
) -> None:
    done = lab.run(*arguments, **settings)
    assert done.returncode == 1
    assert reason in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_error(lab: Lab) -> None:
    command = f"{shlex.quote(sys.executable)} -m labstack.cli.main data export student_exam_scores | head -n 1"
    done = subprocess.run(["bash", "-c", command], env=lab.environment(), capture_output=True, text=True)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_the_version_is_printed(lab: Lab) -> None:
    assert lab.run("--version").stdout == f"labstack, version {labstack.__version__}\n"


def test_help_lists_every_command(lab: Lab) -> None:
    listed = re.findall(r"^  ([a-z]+)  ", lab.run("--help").stdout, re.MULTILINE)
    assert listed == ["train", "promote", "rollback", "canary", "status", "versions", "manifest", "data", "pipeline"]
    for group, commands in (
        ("canary", "start weight stop"),
        ("data", "load list describe export"),
        ("pipeline", "check init"),
    ):
        text = lab.run(group, "--help").stdout
        assert re.findall(r"^  ([a-z]+)  ", text, re.MULTILINE) == commands.split()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk of its own")
def test_a_full_disk_is_reported(lab: Lab, tmp_path: Path, name: str) -> None:
    (tmp_path / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", tmp_path / "disk"], check=True)
    try:
        done = lab.run("train", str(write(tmp_path, name)), lab_outputs=tmp_path / "disk")
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)
    assert (done.returncode, "No space left on device" in done.stderr.splitlines()[-1]) == (1, True)
    assert name not in read_all_roles(lab.registry)
