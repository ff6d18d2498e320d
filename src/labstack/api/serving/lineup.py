"""What one worker serves of one model: an immutable object, swapped by reference."""

from dataclasses import dataclass
from datetime import datetime

from labstack.api.serving.predictor import Predictor
from labstack.contract import Contract


@dataclass(frozen=True)
class Served:
    """A loaded version. `source` is where the registry says its files are, unlike its number never used twice."""

    model: str
    version: int
    source: str
    run_id: str | None
    metrics: dict[str, float]
    contract: Contract
    predictor: Predictor
    since: datetime


@dataclass(frozen=True)
class Lineup:
    """The versions of one model that answer requests."""

    production: Served
