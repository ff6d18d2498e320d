"""The outcome of a training, as its caller and the command line report it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingOutcome:
    """The version that a training registered, its metrics on the held-out rows, and the decision on it.

    `version` is None when none was registered, `run_id` when nothing was trained; `passed` says whether all gates were
    passed.
    """

    model: str
    version: int | None
    run_id: str | None
    metrics: dict[str, float]
    passed: bool
    promoted: bool
    reason: str

    def __str__(self) -> str:
        name = self.model if self.version is None else f"{self.model} version {self.version}"
        rejected = "is unchanged" if self.run_id is None else "was not promoted"
        return f"{name} {'is production' if self.promoted else rejected}: {self.reason}"
