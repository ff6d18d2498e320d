"""The lineup: the versions that one worker serves of one model, an immutable object that is swapped by reference."""

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
    """A loaded version. It is equal only to itself."""

    record: Version
    metrics: dict[str, float]
    contract: Contract
    plan: Plan
    predictor: Predictor

    @cached_property
    def results(self) -> Results:
        """The writer of its predictions as JSON."""
        return Results(self.contract)

    @cached_property
    def layout(self) -> Layout:
        """The layout of the counts of its inputs and predictions."""
        return Layout(self.contract)

    @property
    def model(self) -> str:
        return self.record.model

    @property
    def version(self) -> int:
        return self.record.number


@dataclass(frozen=True, eq=False)
class Role:
    """A version in its role, since a time; `block` is the JSON about both that is in each of its answers."""

    name: str
    served: Served
    since: datetime
    block: orjson.Fragment

    @classmethod
    def of(cls, name: str, served: Served, **more: Any) -> Self:
        """Return the role of a version from now on; `more` are the fields of a subclass."""
        fields = {"name": served.model, "version": served.version, "role": name, "runtime": served.predictor.runtime}
        return cls(name, served, datetime.now(UTC), orjson.Fragment(orjson.dumps(fields)), **more)


@dataclass(frozen=True, eq=False)
class Canary(Role):
    """A version that is compared with production, and its rollout: its share of the requests."""

    rollout: Rollout

    @cached_property
    def _salt(self) -> bytes:
        return hashlib.sha256(self.served.record.source.encode()).digest()

    def gets(self, key: bytes) -> bool:
        """Return true when a request is in the canary's share, the same for one key in every worker and replica.

        The key is hashed with the version's source, so that each canary gets different callers.
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
        """The name of the current step of the canary's trial, the same in every replica; empty without a canary."""
        canary = self.canary
        if canary is None:
            return ""
        versions = f"{canary.served.version} beside {self.production.served.version}"
        return f"{versions}, {canary.rollout}, since {canary.rollout.since}"

    @property
    def roles(self) -> tuple[Role, ...]:
        return (self.production,) if self.canary is None else (self.production, self.canary)

    def pick(self, key: bytes) -> Role:
        """Return the role that answers a request with a sticky key."""
        canary = self.canary
        if canary is not None and canary.rollout.mode == "split" and canary.gets(key):
            return canary
        return self.production

    def shadow_of(self, role: Role, key: bytes) -> Served | None:
        """Return the version that also predicts a request, off its path, to be compared; None when there is none.

        That is a canary in shadow, or production for a request that the canary answered.
        """
        canary = self.canary
        if canary is None:
            return None
        if role is canary:
            return self.production.served
        return canary.served if canary.rollout.mode == "shadow" and canary.gets(key) else None
