"""A relational database as a storage: one connection, statements that may be repeated, errors in words."""

from __future__ import annotations

import json
import re
import time
import weakref
from collections.abc import Container
from contextlib import ExitStack
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError, SQLAlchemyError
from sqlalchemy.orm import Session

from nas.errors import ConfigError
from nas.storage.address import Address
from nas.storage.finishing import same_outcome
from nas.storage.under_way import OWN, UnderWay

POOL = {"pool_pre_ping": True, "pool_size": 2, "max_overflow": 0, "pool_timeout": 30}
"""A worker needs one connection, and a second for its turns; each one costs the server memory."""
CONNECT: dict[str, dict[str, object]] = {
    "sqlite": {"timeout": 30},
    "postgresql+psycopg": {
        "connect_timeout": 4,
        # A server or network that vanished is noticed within half a minute, not after hours.
        "tcp_user_timeout": 30_000,
        "keepalives_idle": 20,
        "keepalives_interval": 5,
        "keepalives_count": 2,
        # Proxies such as pgbouncer hand a connection's prepared statements to strangers.
        "prepare_threshold": None,
        "application_name": "nas",
    },
}
_LONGEST_MS = 60_000
"""A worker that is frozen inside a transaction holds up all others; the server ends it after this time."""
_ATTEMPTS = 5
_HINTS = {
    "too many clients|too many connections|connection slots": (
        "the server has no connection left; each worker needs one and for its turns a second: raise its "
        "max_connections, or put pgbouncer between"
    ),
    "password authentication failed|no password supplied": (
        "check user and password; in a URL the password must be percent-encoded"
    ),
    'database ".*" does not exist': "make it with createdb",
    "permission denied": "the user must be able to make tables: make it the owner of the database",
}


class Database(RDBStorage):
    """Optuna's storage in a database, of which every call may be repeated when its outcome is not known.

    A connection that breaks during a commit leaves open whether it took place. Optuna then makes a trial
    again; here the one that was made is found, where there was a template for it.

    Raises:
        ConfigError: when a study was renamed while it is in use.
    """

    def __init__(self, address: Address) -> None:
        given = make_url(address.secret).query
        connect = {name: value for name, value in CONNECT[address.scheme].items() if name not in given}
        self.names: dict[int, str] = {}
        self._under_way, self._is_own = UnderWay(), False
        self._unconfirmed: dict[int, FrozenTrial] = {}
        # Optuna takes the URL for a format string.
        url = address.secret.replace("{", "{{").replace("}", "}}")
        with ExitStack() as on_failure:
            on_failure.callback(self.close)
            super().__init__(url, {**POOL, "connect_args": connect})
            self._tune()
            on_failure.pop_all()

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._tune()

    def get_study_id_from_name(self, study_name: str) -> int:
        """The number of a study, whose name is remembered."""
        study_id: int = super().get_study_id_from_name(study_name)
        self.names[study_id] = study_name
        return study_id

    def end_trial(self, study_id: int, trial_id: int, outcome: FrozenTrial) -> bool:
        """Ends a running trial in one transaction; false when it had ended already, in another way."""
        with _create_scoped_session(self.scoped_session) as session:
            self._check_name(study_id, session)
            trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            if trial.state.is_finished():
                return same_outcome(self._build_frozen_trial_from_trial_model(trial), outcome)
            before = self._under_way.read_one(session, trial_id)
            for name, value in outcome.user_attrs.items():
                self._set_trial_attr_without_commit(
                    session, models.TrialUserAttributeModel, trial_id, name, value
                )
            for name, value in outcome.system_attrs.items():
                self._set_trial_attr_without_commit(
                    session, models.TrialSystemAttributeModel, trial_id, name, value
                )
            for objective, value in enumerate(outcome.values or ()):
                self._set_trial_value_without_commit(session, trial, objective, value)
            trial.state = outcome.state
            trial.datetime_complete = at = datetime.now()
        if before is not None:
            self._under_way.end(before, outcome, at)
        return True

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """A trial as it is now."""
        with _create_scoped_session(self.scoped_session) as session:
            found = self._under_way.read_one(session, trial_id)
        if found is None:
            found = super().get_trial(trial_id)
            self._under_way.remember([found])
        return found

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Called by Optuna's cache for what may have changed, again and again."""
        ids, above, under_way = included_trial_ids, trial_id_greater_than, list[FrozenTrial]()
        if states is None and (ids or above >= 0):
            with _create_scoped_session(self.scoped_session) as session:
                models.StudyModel.find_or_raise_by_id(study_id, session)
                under_way, ids = self._under_way.read(session, study_id, ids, above)
            if not ids:
                return under_way
            above = max(ids)
        trials = super()._get_trials(study_id, states, ids, above)
        self._under_way.remember(trials)
        return [*under_way, *trials]

    def close(self) -> None:
        """Gives the connections back; there are none where it could not even be begun to connect."""
        if "scoped_session" in vars(self):
            self.remove_session()
            self.engine.dispose()

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """A new trial; called again with the same template after a failure, the one it made then."""
        made: FrozenTrial = super()._create_new_trial(study_id, template_trial)
        self._unconfirmed.pop(id(template_trial), None)
        self._under_way.remember([made])
        return made

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> models.TrialModel:
        """Called by Optuna for each of its attempts, the study locked meanwhile."""
        self._check_name(study_id, session)
        if template_trial is not None:
            if id(template_trial) in self._unconfirmed and (
                made := self._made(study_id, template_trial, session)
            ):
                return made
            self._unconfirmed[id(template_trial)] = template_trial
        self._is_own = template_trial is not None and OWN in template_trial.user_attrs
        try:
            return super()._get_prepared_new_trial(study_id, template_trial, session)
        finally:
            self._is_own = False

    def _set_trial_param_without_commit(  # noqa: PLR0917 - as Optuna's
        self,
        session: Session,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None = None,
    ) -> None:
        """Called by Optuna for each parameter, whose earlier distribution it would look for in all trials.

        Those of this engine's trials are the study's: the space was compared when that was opened.
        """
        if not self._is_own:
            super()._set_trial_param_without_commit(
                session, trial_id, param_name, param_value_internal, distribution, previous_distribution
            )
            return
        text = distribution_to_json(distribution)
        session.add(
            models.TrialParamModel(
                trial_id=trial_id,
                param_name=param_name,
                param_value=param_value_internal,
                distribution_json=text,
            )
        )

    def _set_trial_attr_without_commit(
        self,
        session: Session,
        model_cls: type[models.TrialUserAttributeModel | models.TrialSystemAttributeModel],
        trial_id: int,
        key: str,
        value: object,
    ) -> None:
        """Called by Optuna for each attribute, which a trial that is being made does not have yet."""
        if not self._is_own:
            super()._set_trial_attr_without_commit(session, model_cls, trial_id, key, value)
            return
        session.add(model_cls(trial_id=trial_id, key=key, value_json=json.dumps(value)))

    def _made(self, study_id: int, template: FrozenTrial, session: Session) -> models.TrialModel | None:
        """The trial that began at the template's microsecond with its parameters."""
        trials = session.query(models.TrialModel).filter(models.TrialModel.study_id == study_id)
        for trial in trials.order_by(models.TrialModel.trial_id.desc()):
            same = trial.datetime_start == template.datetime_start
            if same and self._build_frozen_trial_from_trial_model(trial).params == template.params:
                return trial
        return None

    def _check_name(self, study_id: int, session: Session) -> None:
        study = models.StudyModel.find_or_raise_by_id(study_id, session)
        if (name := self.names.get(study_id)) not in (None, study.study_name):
            raise ConfigError(
                f"study {name!r} is called {study.study_name!r} now: it was renamed while this job was "
                "running; give it its name back and repeat the command"
            )

    def _tune(self) -> None:
        weakref.finalize(self, self.engine.dispose)
        if self.engine.name == "sqlite":
            with self.engine.connect() as connection:
                # Readers such as optuna-dashboard then do not hold up the writer.
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            return

        @event.listens_for(self.engine, "connect")
        def bound_transactions(connection: Any, _: object) -> None:  # noqa: ANN401 - of any driver
            connection.execute(f"SET idle_in_transaction_session_timeout = {_LONGEST_MS}")
            connection.commit()

        self.engine.dispose()  # those that were made before


def open_database(address: Address) -> Database:
    """Connects, and makes the tables where they are missing.

    Raises:
        ConfigError: in less than 10 s when that is not possible; nothing of it holds the password.
    """
    if address.is_masked:
        raise ConfigError(f"the password of storage {address} is masked, so it cannot be connected to")
    for attempt in range(_ATTEMPTS):
        try:
            return Database(address)
        except (IntegrityError, ProgrammingError) as error:
            # Two workers may have made the same tables at the same moment.
            problem = explain(error, address)
            time.sleep(0.1 * attempt)
        except (SQLAlchemyError, StorageInternalError) as error:
            problem = explain(error, address)
            break
        except ImportError:
            problem = "the driver is not installed; run: pip install 'nas-engine[postgres]'"
            break
        except RuntimeError as error:  # tables of another version of Optuna
            problem = address.hide(str(error))
            break
    # Raised out here, so that errors whose text or data may hold the password are not chained to it.
    raise ConfigError(f"cannot use storage {address}: {problem}")


def explain(error: Exception, address: Address) -> str:
    """Why a call failed, in one line with advice where there is some, and without the password."""
    cause = root(error)
    text = str(cause.orig) if isinstance(cause, DBAPIError) else str(cause)
    line = address.hide(" ".join(text.split()))
    hints = [hint for pattern, hint in _HINTS.items() if re.search(pattern, line)]
    return "; ".join([line, *hints])


def root(error: Exception) -> BaseException:
    """The error of the database behind the one that Optuna makes of it."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else None
    return cause or error
