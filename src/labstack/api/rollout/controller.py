"""The controller: judges canaries and removes old rows, in one process of all that share our database.

Each worker has a thread that tries to get the lease, and the one that holds it acts. Even if two take themselves for
the holder, because one of them was paused, each move of a role happens once: it starts only from the roles that were
judged, under the lock of all moves.
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
MERGED_SECONDS = 3600.0  # the length of a merged window
KEPT_SECONDS = 7 * 86400.0  # of windows; no trial of a canary is judged by older ones

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
        self._logged_error = ""
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and release the lease for another process."""
        self._stop.set()
        self._thread.join(timeout=1)

    def act(self) -> bool:
        """Judge every canary and remove old rows, if the lease is ours. Return whether it was. Raises DatabaseError."""
        engine, interval = self._engine(), self._settings.canary_interval_seconds
        if not leases.take(engine, LEASE, self._holder, 3 * interval):
            return False
        self._tidy(engine)
        if self._settings.canary_auto:
            for model, lineup in self._follower.lineups.items():
                try:
                    self._decide(engine, model, lineup)
                except moves.RolesMovedError:
                    pass  # moved by another; the next turn judges the new roles
                except RegistryError as error:
                    log.error("canary not moved", model=model, error=str(error))
                except DatabaseError:
                    raise
                except Exception:  # an error in one model must not stop the others
                    log.exception("canary not judged", model=model)
        return True

    def _run(self) -> None:
        while not self._stop.wait(self._settings.canary_interval_seconds * random.uniform(0.8, 1.2)):  # noqa: S311
            try:
                self.act()
                error_text = ""
            except DatabaseError as error:
                error_text = str(error)
            except Exception:  # whatever the error, the next turn may succeed
                log.exception("controller failed")
                continue
            if error_text and error_text != self._logged_error:
                log.error("controller waits", error=error_text)
            self._logged_error = error_text
        with suppress(DatabaseError):  # the lease also expires
            leases.release(self._engine(), LEASE, self._holder)

    def _decide(self, engine: Engine, model: str, lineup: Lineup) -> None:
        """Advance a canary or roll it back, as the verdict says. Raises RegistryError or DatabaseError."""
        step, canary = assessment.step(engine, self._settings, lineup), lineup.canary
        if step is None or canary is None or step.verdict.outcome == "inconclusive":
            return
        roles = read_roles(self._client, model)
        if not _are_judged(roles, lineup, canary):
            return
        verdict = step.verdict
        note = MoveNote(
            reason=f"{verdict.outcome}: {verdict.reason}"[:500],
            who=f"controller at {socket.gethostname()}",
            evidence=assessment.describe_step(step),
            only_from=roles,
        )
        version = canary.served.version
        if verdict.outcome == "roll back":
            moves.stop_canary(self._client, engine, model, **note)
        elif step.next is None:
            moves.accept_canary(self._client, engine, model, version, **note)
        else:
            moves.start_canary(self._client, engine, model, version, step.next, **note)
        log.info("canary moved", model=model, version=version, outcome=verdict.outcome, reason=verdict.reason)
        self._control.raise_desired()

    def _tidy(self, engine: Engine) -> None:
        """Remove old predictions, merge the windows older than the drift window, and remove old ones."""
        settings, now = self._settings, time.time()
        days, rows = settings.prediction_log_days, settings.prediction_log_rows
        while predictions.expire(engine, days, rows) == predictions.EXPIRED_AT_ONCE and not self._stop.is_set():
            pass
        ended = now - settings.drift_window_seconds - assessment.period_seconds(settings)
        with writing(engine) as session:
            windows.merge(session, ended, MERGED_SECONDS, _sum)
            windows.remove(session, now - max(KEPT_SECONDS, 2 * settings.drift_window_seconds))


def _are_judged(roles: Roles, lineup: Lineup, canary: Canary) -> bool:
    """Return whether the registry's roles are those of the lineup that was judged."""
    served = lineup.production.served.version, canary.served.version
    return (roles.production, roles.canary) == served and roles.rollout in (None, canary.rollout)


def _sum(first: str, second: str) -> str:
    """Return the sum of two texts of counts."""
    counts = Counts.loads(first)
    counts.add(Counts.loads(second))
    return counts.dumps()
