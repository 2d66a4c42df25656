"""Images that a list names leave the splits they are in, and nothing else changes."""

import json

import pytest
from jobs import SMALL, Recorder

from nas.data.arrays import digest
from nas.data.exclusions import Suspect, list_of, without
from nas.data.loading import load_task
from nas.errors import ConfigError, DataError
from nas.run.pipeline import retrain, search

TASK = load_task("digits").reduced(300)


def suspect(split, index, *, kind="mislabel", task=TASK, **changes):
    part = task.splits[split]
    values = {
        "kind": kind,
        "split": split,
        "origin": int(part.origin[index]),
        "file": "",
        "digest": digest(part.x[index].numpy()).hex(),
        "given": task.classes[int(part.y[index])],
        "suggested": "",
        "of": -1,
        "score": 1.0,
        "reason": "",
    }
    return Suspect(**(values | changes))


def write(path, *suspects):
    path.write_text(json.dumps(list_of(TASK, suspects)))
    return path


CORRUPT = Suspect("corrupt", "", -1, "a.png", "", "", "", -1, 1.0, "no image")


def test_listed_images_leave_their_splits(tmp_path):
    listed = write(tmp_path / "s.json", suspect("train", 3), suspect("test", 0, kind="leak"), CORRUPT)
    kept = without(TASK, listed)
    assert len(kept.train) == len(TASK.train) - 1 and len(kept.test) == len(TASK.test) - 1
    assert kept.val.x.equal(TASK.val.x) and kept.train.x[3].equal(TASK.train.x[4])
    assert kept.train.origin.tolist() == [o for i, o in enumerate(TASK.train.origin.tolist()) if i != 3]
    assert kept.excluded["images"] == {"train": 1, "val": 0, "test": 1}
    assert kept.mean == pytest.approx((kept.train.x.float() / 255).mean().item())
    assert kept.notes[-1] == f"left out by {listed}: 1 of train, 0 of val, 1 of test"
    assert len(without(TASK, f"{listed}:leak").train) == len(TASK.train)
    whole = write(tmp_path / "none.json")
    assert without(TASK, whole).train.x.equal(TASK.train.x)


def test_a_list_holds_for_every_seed(tmp_path):
    other = load_task("digits", seed=1)
    listed = write(tmp_path / "s.json", suspect("train", 3))
    kept = without(other, listed).splits.values()
    assert sum(map(len, kept)) == 1796
    assert all(int(TASK.train.origin[3]) not in part.origin.tolist() for part in kept)


@pytest.mark.parametrize("change", [{"digest": "00"}, {"given": "x"}])
def test_a_list_of_other_images_is_refused(tmp_path, change):
    listed = write(tmp_path / "s.json", suspect("train", 3, **change))
    with pytest.raises(DataError, match="1 of 1 are not there or changed"):
        without(TASK, listed)


def test_a_list_must_leave_something_of_each_class(tmp_path):
    nines = [suspect("train", i) for i in (TASK.train.y == 9).nonzero().flatten().tolist()]
    with pytest.raises(DataError, match="takes all images of class '9' from train"):
        without(TASK, write(tmp_path / "s.json", *nines))


def test_a_search_audits_and_leaves_out(tmp_path):
    whole = load_task("digits")
    listed = write(tmp_path / "s.json", suspect("train", 3, task=whole))
    told = Recorder()
    settings = SMALL | {"exclude": str(listed), "audit": True, "trials": 1, "top_k": 1}
    settings |= {"top_k_epochs": None, "repeats": None}
    result = search("toy", "digits", "random", out=tmp_path / "run", settings=settings, progress=told)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["task"]["excluded"]["images"] == {"train": 1, "val": 0, "test": 0}
    assert {"audit.json", "suspects.json"} <= {path.name for path in result.folder.iterdir()}
    assert any(note.startswith("likely mislabels") for note in told.notes)
    assert any(note.startswith("left out by") for note in told.notes)


@pytest.mark.parametrize(
    ("setting", "words"), [({"audit": True}, "audit is set"), ({"exclude": "none.json"}, "no list")]
)
def test_a_retraining_leaves_out_too_and_refuses_to_audit(tmp_path, setting, words):
    architecture = {"space": "toy", "settings": {}, "choices": {}}
    with pytest.raises(ConfigError, match=words):
        retrain(architecture, "digits", out=tmp_path / "r", settings=setting)
