"""What one worker serves of one model: an immutable object, swapped by reference."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Self

import orjson

from labstack.model.contract import Contract, Plan
from labstack.model.predictor import Predictor, Results
from labstack.monitoring.counts import Layout
from labstack.registry.client import Version
from labstack.registry.roles import Rollout


@dataclass(frozen=True, eq=False)
class Served:
    """A loaded version; equal to none but itself."""

    record: Version
    metrics: dict[str, float]
    contract: Contract
    plan: Plan
    predictor: Predictor

    @cached_property
    def results(self) -> Results:
        """What turns its predictions into the results of an answer."""
        return Results(self.contract)

    @cached_property
    def layout(self) -> Layout:
        """Where what it sees and says is counted."""
        return Layout(self.contract)

    @property
    def model(self) -> str:
        return self.record.model

    @property
    def version(self) -> int:
        return self.record.number


@dataclass(frozen=True, eq=False)
class Role:
    """A version in its role, and since when; `block` is what each of its answers says of both, as JSON."""

    name: str
    served: Served
    since: datetime
    block: orjson.Fragment

    @classmethod
    def of(cls, name: str, served: Served, **more: Any) -> Self:
        """The role that a version has from now on; `more` is what a role has beyond these."""
        fields = {"name": served.model, "version": served.version, "role": name, "runtime": served.predictor.runtime}
        return cls(name, served, datetime.now(UTC), orjson.Fragment(orjson.dumps(fields)), **more)


@dataclass(frozen=True, eq=False)
class Canary(Role):
    """A version beside production, and how it gets its requests."""

    rollout: Rollout

    @cached_property
    def _salt(self) -> bytes:
        return hashlib.sha256(self.served.record.source.encode()).digest()

    def gets(self, key: bytes) -> bool:
        """Whether a request is in the canary's share: for one key always the same, in every worker and replica.

        The key is hashed with the version's source, so that another canary gets other callers.
        """
        digest = hashlib.blake2b(key, digest_size=8, key=self._salt).digest()
        return int.from_bytes(digest, "big") < self.rollout.weight * 2**64


@dataclass(frozen=True)
class Lineup:
    """The versions of one model that answer requests, each in its role."""

    production: Role
    canary: Canary | None = None

    @cached_property
    def trial(self) -> str:
        """The step of the canary's trial, by a name that every replica gives it; empty without a canary."""
        canary = self.canary
        if canary is None:
            return ""
        versions = f"{canary.served.version} beside {self.production.served.version}"
        return f"{versions}, {canary.rollout}, since {canary.rollout.since}"

    @property
    def roles(self) -> tuple[Role, ...]:
        return (self.production,) if self.canary is None else (self.production, self.canary)

    def pick(self, key: bytes) -> Role:
        """Who answers a request, by its sticky key."""
        canary = self.canary
        if canary is not None and canary.rollout.mode == "split" and canary.gets(key):
            return canary
        return self.production

    def beside(self, role: Role, key: bytes) -> Served | None:
        """Who predicts a request too, off its path: a canary in shadow, or production what a canary answered."""
        canary = self.canary
        if canary is None:
            return None
        if role is canary:
            return self.production.served
        return canary.served if canary.rollout.mode == "shadow" and canary.gets(key) else None
