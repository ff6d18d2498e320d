"""One look at the registry: the decision, model by model, which versions a worker serves from then on."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from labstack.api.serving.lineup import Canary, Lineup, Role, Served
from labstack.api.serving.loader import Loader, LoadFailedError
from labstack.model.contract import Contract
from labstack.registry.client import NotThereError, Version
from labstack.registry.roles import CANARY, PRODUCTION, SCHEMA_CHANGE_TAG, Roles, Rollout


class IncompatibleError(Exception):
    """A version rejects bodies that another one accepts, or answers otherwise; the text says what differs."""

    def __init__(self, number: int, differences: Sequence[str]) -> None:
        text = f"It does not keep to the contract of version {number}, which is served: {'; '.join(differences)}."
        super().__init__(text)


def require_compatible(production: Served, contract: Contract) -> None:
    """Raise IncompatibleError when a version of this contract would break callers of production."""
    if differences := contract.breaks_with(production.contract):
        raise IncompatibleError(production.version, differences)


class Decision(NamedTuple):
    """The lineups to serve, what went wrong by model, and the models that are no longer to be served."""

    lineups: dict[str, Lineup]
    errors: dict[str, str]
    gone: frozenset[str]


@dataclass(frozen=True)
class Look:
    """A look at the registry, from the state before it.

    `current` are the lineups that are served; `last_served` are the records of the production versions that were
    served before this process started, until the registry has answered it once. `canary_share` is the weight of a
    canary without a rollout in the registry. With `retry`, failed versions are tried again at once.
    """

    loader: Loader
    current: Mapping[str, Lineup]
    last_served: Mapping[str, Version]
    canary_share: float
    retry: bool

    def decide(self, registered: Mapping[str, Roles]) -> Decision:
        """Return the lineups for the roles of all registered models; raise RegistryUnreachableError or RegistryError.

        A version that cannot be loaded, or breaks what callers send, leaves the one before it in place; a deleted one
        does not. A canary that cannot be loaded is left out.
        """
        lineups: dict[str, Lineup] = {}
        errors: dict[str, str] = {}
        for model, roles in registered.items():
            if roles.production is None:
                continue
            lineup, problems = self._lineup(model, roles.production, roles)
            if lineup is not None:
                lineups[model] = lineup
            if problems:
                errors[model] = " ".join(problems)
        expected = self._expected()
        gone = {model for model, roles in registered.items() if roles.production is None and model not in expected}
        for model, record in expected.items():
            if model in registered and registered[model].production is not None:
                continue
            if self._is_from_this_registry(record, bool(registered)):
                gone.add(model)
                continue
            errors[model] = (
                f"The registry has no production version of {model!r}, and does not hold the run of version "
                f"{record.number}, as if it had been emptied; that version stays in service."
            )
            if lineup := self._last_lineup(model):
                lineups[model] = lineup
        return Decision(lineups, errors, frozenset(gone))

    def _lineup(self, model: str, number: int, roles: Roles) -> tuple[Lineup | None, list[str]]:
        """Return the lineup of a model whose production version is `number`, or None, and what went wrong.

        The current lineup itself is returned when nothing changed.
        """
        current = self.current.get(model)
        problems = []
        try:
            production = self._production(model, number, roles)
        except LoadFailedError as error:
            problems.append(str(error))
            last = None if error.deleted else self._last_production(model)
            if last is None:
                return None, problems
            production = last
        canary = None
        if roles.canary is not None and roles.canary not in (number, production.served.version):
            try:
                canary = self._canary(model, roles.canary, roles, production)
            except LoadFailedError as error:
                problems.append(str(error))
                if not error.deleted and current is not None and current.production is production:
                    canary = _canary_of_version(current, roles.canary)
        lineup = Lineup(production, canary)
        return (current if current == lineup else lineup), problems

    def _production(self, model: str, number: int, roles: Roles) -> Role:
        """Return the production role for a version: the current one if the version is the same."""

        def require(served: Served) -> None:
            self._require_followable(served, roles)

        current = self.current.get(model)
        served = self.loader.attempt(model, number, self._loaded(model), require, self.retry)
        if current is not None and current.production.served is served:
            return current.production
        return Role.of(PRODUCTION, served)

    def _canary(self, model: str, number: int, roles: Roles, production: Role) -> Canary:
        """Return the canary role for a version: the current one if version and rollout are the same."""

        def require(served: Served) -> None:
            require_compatible(production.served, served.contract)

        current = self.current.get(model)
        served = self.loader.attempt(model, number, self._loaded(model), require, self.retry)
        rollout = roles.rollout or Rollout(self.canary_share, "split")
        canary = current.canary if current else None
        if canary and canary.served is served and canary.rollout == rollout:
            return canary
        return Canary.of(CANARY, served, rollout=rollout)

    def _loaded(self, model: str) -> list[Served]:
        current = self.current.get(model)
        return [role.served for role in current.roles] if current else []

    def _last_production(self, model: str) -> Role | None:
        current = self.current.get(model)
        return current.production if current else self.loader.recall(model)

    def _last_lineup(self, model: str) -> Lineup | None:
        """Return the lineup that is served, or one of the version that was served last."""
        if model in self.current:
            return self.current[model]
        role = self.loader.recall(model)
        return Lineup(role) if role else None

    def _expected(self) -> dict[str, Version]:
        """Return the production versions that are served, or were served last until the registry answers."""
        served = {model: lineup.production.served.record for model, lineup in self.current.items()}
        return {**self.last_served, **served}

    def _is_from_this_registry(self, record: Version, has_models: bool) -> bool:
        """Return true when the registry holds a version's run, so that it may say that the version's model is gone.

        A run outlives the deletion of its model, but not that of the registry. For a version without a run, a registry
        that `has_models` is enough. Raises RegistryError.
        """
        if record.run_id is None:
            return has_models
        try:
            with self.loader.asking():
                self.loader.client.run(record.run_id)
        except NotThereError:
            return False
        return True

    def _require_followable(self, served: Served, roles: Roles) -> None:
        """Raise IncompatibleError when a version would replace another one whose callers it breaks.

        That is allowed when its gates allowed it, and when a command of the lab made it production: the command
        checked it, or was forced.
        """
        record, last = served.record, self._last_known(served.model)
        if last is None:
            return
        last_record, last_contract = last
        if record == last_record or record.number == roles.moved or SCHEMA_CHANGE_TAG in record.tags:
            return
        differences = served.contract.breaks_with(last_contract)
        if differences and self._still_registered(last_record):
            raise IncompatibleError(last_record.number, differences)

    def _last_known(self, model: str) -> tuple[Version, Contract] | None:
        """Return the production version that callers of a model know, with its contract; None when there is none."""
        if (current := self.current.get(model)) is not None:
            return current.production.served.record, current.production.served.contract
        if (record := self.last_served.get(model)) is not None:
            with suppress(OSError, ValueError):
                return record, Contract.read(self.loader.cache.folder(record))
        return None

    def _still_registered(self, record: Version) -> bool:
        """Return false when a version was deleted, also if its number was used again."""
        try:
            with self.loader.asking():
                return self.loader.client.version(record.model, record.number) == record
        except NotThereError:
            return False


def _canary_of_version(lineup: Lineup, number: int) -> Canary | None:
    """Return a lineup's canary if it is this version."""
    canary = lineup.canary
    return canary if canary is not None and canary.served.version == number else None
