"""The audit of data finds what was planted in them, and a search leaves it out on demand."""

import json

import numpy as np
import pytest
from using import TINY, nas_command, refused

import nas

TRAIN, TEST = 240, 60
WRONG = (3, 40, 77, 121, 160, 199, 214, 231)
WRONG_IN_TEST = 20
COPIED = (10, 65, 130)
"""Images of the training part that occur a second time in it."""
LEAKED = (5, 31, 47)
"""Images of the test part that are in the training part, too."""
ODD = 100
"""An image unlike any other."""


def _shapes(count, seed):
    """Squares at one of four places under noise, each of another brightness."""
    draw = np.random.default_rng(seed)
    y = np.arange(count) % 4
    x = draw.integers(0, 60, (count, 10, 10))
    for image, kind in zip(x, y, strict=True):
        row, column = 5 * (kind // 2), 5 * (kind % 2)
        image[row : row + 4, column : column + 4] += draw.integers(120, 190)
    return x.astype(np.uint8), y


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The task of a file with planted errors; the same errors by kind and position in the source."""
    (x, y), (x_test, y_test) = _shapes(TRAIN, 0), _shapes(TEST, 1)
    x[ODD] = np.add.outer(np.arange(10), np.arange(10)) % 2 * 255
    y[list(WRONG)] = (y[list(WRONG)] + 1) % 4
    y_test[WRONG_IN_TEST] = (y_test[WRONG_IN_TEST] + 1) % 4
    x = np.concatenate([x, x[list(COPIED)], x_test[list(LEAKED)]])
    y = np.concatenate([y, y[list(COPIED)], y_test[list(LEAKED)]])
    file = tmp_path_factory.mktemp("planted") / "shapes.npz"
    np.savez(file, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return f"npz:{file}"


@pytest.fixture(scope="module")
def audited(planted, tmp_path_factory):
    """What the audit of it says, and the folder of its findings."""
    folder = tmp_path_factory.mktemp("audit") / "findings"
    said = nas_command("audit", planted, "--out", folder, "--json")
    assert said.code == 0, said.err
    suspects = json.loads((folder / "suspects.json").read_text())["suspects"]
    return json.loads(said.out), suspects, folder


def _origins(suspects, *kinds):
    return {suspect["origin"] for suspect in suspects if suspect["kind"] in kinds}


def test_wrong_labels_are_found_with_the_right_one(audited):
    _, suspects, _ = audited
    found = [suspect for suspect in suspects if suspect["kind"] == "mislabel"]
    positions = {suspect["origin"] for suspect in found}
    in_test = TRAIN + len(COPIED) + len(LEAKED) + WRONG_IN_TEST
    assert len(positions & set(WRONG)) >= len(WRONG) - 1
    assert in_test in positions
    assert len(positions - set(WRONG) - {ODD, in_test}) <= 3
    right = {place: str(place % 4) for place in WRONG}
    judged = [suspect for suspect in found if suspect["origin"] in right]
    assert all(suspect["suggested"] == right[suspect["origin"]] != suspect["given"] for suspect in judged)


def test_copies_and_leaks_between_splits_are_found_in_pairs(audited):
    told, suspects, _ = audited
    pairs = {frozenset(group["origins"]) for group in told["groups"] if group["exact"]}
    copies = {frozenset((place, TRAIN + number)) for number, place in enumerate(COPIED)}
    first = TRAIN + len(COPIED)
    leaks = {frozenset((first + number, first + len(LEAKED) + place)) for number, place in enumerate(LEAKED)}
    assert pairs == copies | leaks
    assert len(told["groups"]) <= len(pairs) + 4  # that look alike by chance
    for pair in leaks:
        assert pair & _origins(suspects, "leak")
        group = next(group for group in told["groups"] if frozenset(group["origins"]) == pair)
        assert "test" in group["splits"]
        assert len(group["splits"]) == 2
    for pair in copies:
        assert pair & _origins(suspects, "leak", "duplicate")
    at_most_one_of_each = _origins(suspects, "leak", "duplicate")
    assert all(len(pair & at_most_one_of_each) == 1 for pair in pairs)


def test_what_is_like_nothing_else_is_an_outlier_and_all_can_be_looked_at(audited):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    _, suspects, folder = audited
    assert ODD in _origins(suspects, "outlier")
    assert len(_origins(suspects, "outlier")) <= 4
    with image.open(folder / "suspects.png") as sheet:
        assert min(sheet.size) >= 100
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 50


def test_a_search_leaves_out_what_the_audit_named(planted, audited, tmp_path):
    _, suspects, folder = audited
    listed = f"{folder}/suspects.json"
    whole, kept = nas.load_task(planted), nas.without(nas.load_task(planted), listed)
    named = {suspect["origin"] for suspect in suspects}
    left = {int(origin) for split in (kept.train, kept.val, kept.test) for origin in split.origin}
    assert not left & named
    assert len(left) == sum(len(split.y) for split in (whole.train, whole.val, whole.test)) - len(named)
    assert kept.fingerprint != whole.fingerprint
    leaks = nas.without(nas.load_task(planted), f"{listed}:leak")
    assert len(left) < len(leaks.train.y) + len(leaks.val.y) + len(leaks.test.y)
    settings = TINY | {"exclude": f"{listed}:leak"}
    result = nas.search("toy", planted, "random", out=tmp_path / "run", settings=settings)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["task"]["fingerprint"] == leaks.fingerprint
    assert result.metrics["test_acc"] >= 0
    (folder / "another.json").write_text((folder / "suspects.json").read_text().replace("leak", "mislabel"))
    changed = settings | {"exclude": f"{folder}/another.json:leak"}
    again = {"out": tmp_path / "run", "settings": changed}
    refused(lambda: nas.search("toy", planted, "random", **again), "exclude")


def test_a_list_for_other_images_is_refused(audited):
    *_, folder = audited
    digits = nas.load_task("digits")
    refused(lambda: nas.without(digits, folder / "suspects.json"), by=nas.NasError)
    for content in ("", "[]", '{"format": 1}', '{"format": 99, "task": "x", "suspects": []}'):
        (folder / "bad.json").write_text(content)
        refused(lambda: nas.without(digits, folder / "bad.json"), "bad.json")
    refused(lambda: nas.without(digits, folder / "none.json"), "none.json")
    refused(lambda: nas.without(digits, f"{folder}/suspects.json:misslabel"), "mislabel")
