"""What is read again of trials under way is what a reader who knows nothing of them gets."""

import random

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial
from postgres import postgres
from sqlalchemy import event

from nas.storage.address import Address
from nas.storage.run import open_storage

__all__ = ["postgres"]


def template(draw, state, **attributes):
    options = [f"option {i}" for i in range(5)]
    return create_trial(
        state=state,
        values=[draw.random()] if state == TrialState.COMPLETE else None,
        params={"a": draw.choice(options), "b": draw.choice(options)},
        distributions={name: CategoricalDistribution(options) for name in "ab"},
        user_attrs=attributes,
    )


def change(storage, study_id, draw):
    """One thing that a worker might do."""
    under_way = [t for t in storage.get_all_trials(study_id) if not t.state.is_finished()]
    if len(under_way) < 3:
        own = {"nas": {"metrics": {}}} if draw.random() < 0.7 else {}
        state = draw.choice([TrialState.RUNNING, TrialState.WAITING, TrialState.COMPLETE])
        storage.create_new_trial(study_id, template(draw, state, owner={"pid": 1}, **own))
        return
    trial_id = draw.choice(under_way)._trial_id
    match draw.randrange(5):
        case 0:
            storage.set_trial_user_attr(trial_id, "beat", draw.randrange(3))
        case 1:
            storage.set_trial_user_attr(trial_id, "owner", {"pid": draw.randrange(3)})
        case 2:
            storage.set_trial_state_values(trial_id, TrialState.WAITING)
        case 3:
            if storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                storage.set_trial_user_attr(trial_id, "owner", {"pid": 1, "attempt": draw.randrange(10**6)})
        case 4 if "nas" in storage.get_trial(trial_id).user_attrs:
            told = template(draw, TrialState.COMPLETE, nas={"metrics": {"x": draw.random()}})
            storage.finish_trial(study_id, storage.get_trial(trial_id).number, told)
        case _:
            storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [draw.random()])


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    return Address(request.getfixturevalue("postgres").database())


def test_readers_see_the_same_whatever_they_have_read_before(url):
    draw = random.Random(3)
    writer, reader = open_storage(url), open_storage(url)
    study_id = writer.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "s")
    for step in range(120):
        change(writer, study_id, draw)
        if draw.random() < 0.5:
            new = open_storage(url).get_all_trials(study_id) if step % 10 == 0 else None
            seen = reader.get_all_trials(study_id, deepcopy=False)
            assert [t.number for t in seen] == list(range(len(seen)))
            if new is not None:
                assert [vars(t) for t in seen] == [vars(t) for t in new]
                assert [vars(t) for t in writer.get_all_trials(study_id)] == [vars(t) for t in new]
    seen = reader.get_all_trials(study_id)
    assert [vars(t) for t in seen] == [vars(t) for t in open_storage(url).get_all_trials(study_id)]
    assert len({t.state for t in seen}) > 1


def test_of_known_trials_under_way_only_state_and_attributes_are_read(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    writer, reader = open_storage(url), open_storage(url)
    study_id = writer.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "s")
    draw = random.Random(1)
    for _ in range(4):
        writer.create_new_trial(study_id, template(draw, TrialState.RUNNING, nas={}))
    reader.get_all_trials(study_id)
    whole = []
    reader.database._build_frozen_trial_from_trial_model = lambda trial: whole.append(trial) or 1 / 0
    writer.set_trial_user_attr(2, "beat", 7)
    seen = reader.get_all_trials(study_id)
    assert seen[1].user_attrs == {"nas": {}, "beat": 7} and not whole
    assert (
        reader.get_all_trials(study_id, deepcopy=False)[0]
        is reader.get_all_trials(study_id, deepcopy=False)[0]
    )


def test_a_trial_that_was_ended_here_is_not_read_again(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    writer = open_storage(url)
    study_id = writer.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "s")
    draw, whole = random.Random(1), []
    trial_id = writer.create_new_trial(study_id, template(draw, TrialState.RUNNING, nas={}))
    writer.get_all_trials(study_id)
    writer.set_trial_user_attr(trial_id, "beat", 7)
    writer.database._build_frozen_trial_from_trial_model = lambda trial: whole.append(trial) or 1 / 0
    told = template(draw, TrialState.COMPLETE, nas={"metrics": {"x": 0.5}, "beside": (1, 2)})
    assert writer.finish_trial(study_id, 0, told)
    seen = writer.get_all_trials(study_id)
    assert not whole
    assert [vars(t) for t in seen] == [vars(t) for t in open_storage(url).get_all_trials(study_id)]
    assert seen[0].user_attrs == {"nas": {"metrics": {"x": 0.5}, "beside": [1, 2]}, "beat": 7}


def test_the_storage_is_asked_few_questions_about_a_trial(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}")
    study_id = storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "s")
    draw, asked = random.Random(1), []
    event.listen(storage.database.engine, "before_cursor_execute", lambda *about: asked.append(about[2]))
    trial_id = storage.create_new_trial(study_id, template(draw, TrialState.RUNNING, nas={}, owner={}))
    made, known = len(asked), storage.get_trial_id_from_study_id_trial_number(study_id, 0)
    assert known == trial_id and made == len(asked) <= 9
    storage.get_all_trials(study_id)  # the first time, all are read
    begun = len(asked)
    assert storage.finish_trial(study_id, 0, template(draw, TrialState.COMPLETE, nas={"metrics": {}}))
    storage.get_all_trials(study_id)
    assert len(asked) - begun <= 10
