"""What one worker serves of one model: an immutable object, swapped by reference."""

from dataclasses import dataclass
from datetime import datetime

import orjson

from labstack.api.serving.predictor import Predictor
from labstack.contract import Contract, Plan
from labstack.mlflow_rest import Version


@dataclass(frozen=True)
class Served:
    """A loaded version."""

    record: Version
    metrics: dict[str, float]
    contract: Contract
    plan: Plan
    predictor: Predictor
    since: datetime

    @property
    def model(self) -> str:
        return self.record.model

    @property
    def version(self) -> int:
        return self.record.number


@dataclass(frozen=True)
class Role:
    """A version in its role; `block` is what each of its answers says of both, as JSON."""

    name: str
    served: Served
    block: orjson.Fragment

    @classmethod
    def of(cls, name: str, served: Served) -> "Role":
        fields = {"name": served.model, "version": served.version, "role": name, "runtime": served.predictor.runtime}
        return cls(name, served, orjson.Fragment(orjson.dumps(fields)))


@dataclass(frozen=True)
class Lineup:
    """The versions of one model that answer requests, each in its role."""

    production: Role

    def pick(self) -> Role:
        """Who answers a request."""
        return self.production
