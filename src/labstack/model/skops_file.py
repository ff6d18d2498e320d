"""The estimator in a version's folder, a skops file, which builds only trusted types; a pickle can run any code."""

import zipfile
from pathlib import Path
from typing import Any

from labstack.errors import LabError
from labstack.model import compiled_parts

# The parts of scikit-learn's estimators that skops does not know: classes that compute. A rule such as "all of sklearn"
# would let in functions that run programs.
TRUSTED_TYPES = frozenset(
    {
        "numpy.dtype",  # of the columns that an encoder makes
        "sklearn._loss.loss.HalfTweedieLossIdentity",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
        "sklearn.gaussian_process.kernels.ConstantKernel",
        "sklearn.gaussian_process.kernels.Product",
        "sklearn.gaussian_process.kernels.RBF",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    }
)
FILE_NAME = "model.skops"  # as MLflow's scikit-learn flavour names it


class ModelFileError(LabError):
    """The file is damaged, or holds a type that is not trusted, whose loading could run any code."""


def trusted_types(path: Path) -> list[str]:
    """Return the types in the file that skops does not know and that we trust, sorted.

    Raises ModelFileError, which names every other type in the file.
    """
    import skops.io  # it takes seconds and much memory; a version with an ONNX model does not need it

    unknown = sorted(skops.io.get_untrusted_types(file=path))
    foreign = [name for name in unknown if name not in TRUSTED_TYPES]
    if foreign:
        raise ModelFileError(f"{path.name} holds types that are not trusted: {', '.join(foreign)}")
    return unknown


def load(folder: Path, max_bytes: int) -> Any:
    """Load the estimator in a version's folder, if its file unpacks to at most so many bytes.

    Raises ModelFileError.
    """
    path = folder / FILE_NAME
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > max_bytes:
            raise ModelFileError(f"{path.name} unpacks to {unpacked:,} bytes, and at most {max_bytes:,} are loaded.")
        import skops.io  # here, as it takes much memory

        estimator = skops.io.load(path, trusted=trusted_types(path))
        compiled_parts.require_sound(estimator)
    except (ModelFileError, MemoryError):
        raise
    except Exception as error:  # a damaged file may fail in any way
        raise ModelFileError(f"{path.name} cannot be loaded: {type(error).__name__}: {error}") from error
    return estimator
