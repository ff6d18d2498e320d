"""Fetch a version within limits, and try it in a separate process, before a worker loads it or a role moves to it.

Its files are not trusted: a load that hangs, takes all memory or crashes must do so in a process that can be killed.
"""

import importlib.metadata
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from labstack.errors import LabError
from labstack.model import contract as contract_module
from labstack.model import skops_file
from labstack.model.contract import FILE_NAME, ONNX_FILE_NAME, Contract
from labstack.model.predictor import FAILED
from labstack.registry.client import MlflowRest, RegistryError, RegistryFailedError, Version
from labstack.settings import Settings

ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}


class TrialError(LabError):
    """A version cannot be served: the text says why."""


class TrialTimeoutError(TrialError):
    """A trial took too long, as happens on a busy machine."""


def fetch(
    client: MlflowRest, record: Version, folder: Path, settings: Settings, estimator: str | None = None
) -> Contract:
    """Put a version's contract and estimator into a folder; return the contract.

    `estimator` names the file, by default the one that serves the version. Raises RegistryError, OSError, or ValueError
    when the contract is not valid.
    """
    seconds, limit = settings.model_load_seconds, settings.model_max_bytes
    contract = fetch_contract(client, record, folder, settings)
    name = estimator or (ONNX_FILE_NAME if contract.onnx else skops_file.FILE_NAME)
    client.download(record.model, record.number, name, folder, limit, seconds)
    return contract


def fetch_contract(client: MlflowRest, record: Version, folder: Path, settings: Settings) -> Contract:
    """Put a version's contract into a folder, and return it. Raises as `fetch` does."""
    limit, seconds = contract_module.MAX_BYTES, settings.model_load_seconds
    client.download(record.model, record.number, FILE_NAME, folder, limit, seconds)
    return Contract.read(folder)


def run(folder: Path, settings: Settings) -> None:
    """Load the version in a folder and predict its sample, in a process with limits. Raises TrialError."""
    seconds, memory = settings.model_load_seconds, settings.model_memory_bytes
    arguments = map(str, (folder, memory, seconds, settings.prediction_seconds))
    process = subprocess.Popen(
        [sys.executable, "-m", "labstack.model.predictor", *arguments],
        env=os.environ | ONE_THREAD,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        text = f"It was not loaded and tried within {seconds:g} seconds (MODEL_LOAD_SECONDS)."
        raise TrialTimeoutError(text) from None
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    if process.returncode == 0:
        return
    if process.returncode == FAILED:
        raise TrialError(output.decode(errors="replace").strip())
    code = process.returncode
    cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    raise TrialError(
        f"Loading and trying it ended its process by {cause}; it may take at most {memory:,} bytes of memory."
    )


def require_servable(client: MlflowRest, record: Version, settings: Settings) -> Contract:
    """Return the contract of a version that was fetched and tried. Raises TrialError or RegistryFailedError."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            contract = fetch(client, record, Path(folder), settings)
            run(Path(folder), settings)
        except RegistryFailedError:
            raise
        except (RegistryError, TrialError, OSError, ValueError) as error:
            text = f"Version {record.number} of {record.model!r} cannot be served: {error}"
            raise TrialError(text) from error
    return contract


def environment() -> str:
    """Return the versions of the libraries that load a version: a trial is valid for these alone."""
    names = ("numpy", "onnxruntime", "scikit-learn", "skops")
    return " ".join(f"{name}={importlib.metadata.version(name)}" for name in names)
