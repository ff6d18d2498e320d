"""The estimator in a version's folder: skops, which builds only named types and runs no code as pickle does."""

import zipfile
from pathlib import Path
from typing import Any

from labstack.errors import LabError
from labstack.model import compiled_parts

# What scikit-learn's estimators consist of beyond the types that skops knows: classes that compute. A rule such as
# "all of sklearn" would let in functions that run programs.
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
    """The file is damaged, or holds a type that is not trusted, which could do anything when it is loaded."""


def trusted_types(path: Path) -> list[str]:
    """The types in the file that skops does not know by itself and that we trust, sorted.

    Raises ModelFileError, naming every other type in it.
    """
    import skops.io  # seconds and much memory, which a version with an ONNX model does without

    unknown = sorted(skops.io.get_untrusted_types(file=path))
    foreign = [name for name in unknown if name not in TRUSTED_TYPES]
    if foreign:
        raise ModelFileError(f"{path.name} holds types that are not trusted: {', '.join(foreign)}")
    return unknown


def load(folder: Path, max_bytes: int) -> Any:
    """The estimator in a version's folder, whose file holds so many bytes at most when it is unpacked.

    Raises ModelFileError.
    """
    path = folder / FILE_NAME
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > max_bytes:
            raise ModelFileError(f"{path.name} unpacks to {unpacked:,} bytes, and at most {max_bytes:,} are loaded.")
        import skops.io  # only now, as it takes much memory

        estimator = skops.io.load(path, trusted=trusted_types(path))
        compiled_parts.require_sound(estimator)
    except (ModelFileError, MemoryError):
        raise
    except Exception as error:  # a damaged file may fail in any way
        raise ModelFileError(f"{path.name} cannot be loaded: {type(error).__name__}: {error}") from error
    return estimator
