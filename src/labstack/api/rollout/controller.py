"""What one process does for all workers and replicas that share our database: judge canaries, and tidy up.

Each worker has a thread that tries to get the lease; whoever has it acts. Should two take themselves for its holder for
a moment, as one of them was stopped in the middle, each move of a role still happens once: it is made only from the
roles that were judged, under the lock that all moves are made under.
"""

import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import structlog
from sqlalchemy import Engine

from labstack.api.rollout import assessment
from labstack.api.serving.control import Control
from labstack.api.serving.follower import Follower
from labstack.api.serving.lineup import Canary, Lineup
from labstack.monitoring.counts import Counts
from labstack.registry import moves
from labstack.registry.client import MlflowRest, RegistryError
from labstack.registry.moves import MoveNote
from labstack.registry.roles import Roles, read_roles
from labstack.settings import Settings
from labstack.store import leases, predictions, windows
from labstack.store.database import DatabaseError, writing

LEASE = "controller"
MERGED_SECONDS = 3600.0
KEPT_SECONDS = 7 * 86400.0  # of windows, beyond which no trial of a canary is judged

log = structlog.get_logger(__name__)


class Controller:
    def __init__(
        self,
        settings: Settings,
        control: Control,
        client: MlflowRest,
        follower: Follower,
        engine: Callable[[], Engine],
    ) -> None:
        self._settings = settings
        self._control = control
        self._client = client
        self._follower = follower
        self._engine = engine
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._stop = threading.Event()
        self._told = ""
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; whoever is next need not wait for the lease to end."""
        self._stop.set()
        self._thread.join(timeout=1)

    def act(self) -> bool:
        """Do once what is to be done, if the lease is ours; whether it was. Raises DatabaseError."""
        engine, interval = self._engine(), self._settings.canary_interval_seconds
        if not leases.take(engine, LEASE, self._holder, 3 * interval):
            return False
        self._tidy(engine)
        if self._settings.canary_auto:
            for model, lineup in self._follower.lineups.items():
                try:
                    self._decide(engine, model, lineup)
                except moves.RolesMovedError:
                    pass  # somebody moved them meanwhile: to be judged anew
                except RegistryError as error:
                    log.error("canary not moved", model=model, error=str(error))
                except DatabaseError:
                    raise
                except Exception:  # of one model; the others are judged
                    log.exception("canary not judged", model=model)
        return True

    def _run(self) -> None:
        while not self._stop.wait(self._settings.canary_interval_seconds * random.uniform(0.8, 1.2)):  # noqa: S311
            try:
                self.act()
                told = ""
            except DatabaseError as error:
                told = str(error)
            except Exception:  # whatever it was, the next turn may go well
                log.exception("controller failed")
                continue
            if told and told != self._told:
                log.error("controller waits", error=told)
            self._told = told
        with suppress(DatabaseError):  # it ends by itself
            leases.release(self._engine(), LEASE, self._holder)

    def _decide(self, engine: Engine, model: str, lineup: Lineup) -> None:
        """Advance a canary, or take it out, where the verdict says so. Raises RegistryError or DatabaseError."""
        found, tried = assessment.step(engine, self._settings, lineup), lineup.canary
        if found is None or tried is None or found.verdict.outcome == "inconclusive":
            return
        roles = read_roles(self._client, model)
        if not _same(roles, lineup, tried):
            return
        verdict = found.verdict
        said = MoveNote(
            reason=f"{verdict.outcome}: {verdict.reason}"[:500],
            who=f"controller at {socket.gethostname()}",
            evidence=assessment.shown_step(found),
            only_from=roles,
        )
        number = tried.served.version
        if verdict.outcome == "roll back":
            moves.stop_canary(self._client, engine, model, **said)
        elif found.next is None:
            moves.accept_canary(self._client, engine, model, number, **said)
        else:
            moves.start_canary(self._client, engine, model, number, found.next, **said)
        log.info("canary moved", model=model, version=number, outcome=verdict.outcome, reason=verdict.reason)
        self._control.raise_desired()

    def _tidy(self, engine: Engine) -> None:
        """Remove old predictions, and merge the windows that no drift is looked for in any more."""
        settings, now = self._settings, time.time()
        days, rows = settings.prediction_log_days, settings.prediction_log_rows
        while predictions.expire(engine, days, rows) == predictions.EXPIRED_AT_ONCE and not self._stop.is_set():
            pass
        ended = now - settings.drift_window_seconds - assessment.period_seconds(settings)
        with writing(engine) as session:
            windows.merge(session, ended, MERGED_SECONDS, _sum)
            windows.remove(session, now - max(KEPT_SECONDS, 2 * settings.drift_window_seconds))


def _same(roles: Roles, lineup: Lineup, tried: Canary) -> bool:
    """Whether the registry's roles are those that a lineup was judged in."""
    served = lineup.production.served.version, tried.served.version
    return (roles.production, roles.canary) == served and roles.rollout in (None, tried.rollout)


def _sum(one: str, other: str) -> str:
    counts = Counts.loads(one)
    counts.add(Counts.loads(other))
    return counts.dumps()
