"""Constraints and objectives: what is delivered keeps them, and a front is the one that the trials have."""

import json

import pytest
from using import TINY, Told, nas_command

import nas

FEW = TINY | {"search_images": 40, "trials": 27}
LIMIT = 3000


def _params(space):
    """The parameters of every architecture of a space."""
    return {g: sum(p.numel() for p in space.network(g).parameters()) for g in space.enumerate()}


@pytest.fixture(scope="module")
def sizes():
    """Those of the spaces as trials are measured, at their final width."""
    return _params(nas.load("toy", width=16))


def test_the_largest_allowed_network_is_found_where_size_is_all_that_counts(tmp_path, sizes):
    goals = {"objective": ["params"], "constraint": [f"params<={LIMIT}"]}
    result = nas.search("toy", "digits", "nsga2", out=tmp_path / "run", settings=FEW | goals)
    wanted = max(size for size in sizes.values() if size <= LIMIT)
    assert max(sizes.values()) > LIMIT
    assert result.metrics["params"] == wanted == sizes[result.genotype]


def test_a_weighted_sum_chooses_what_it_says(tmp_path, sizes):
    settings = FEW | {"objective": ["val_acc - 1000*params"]}
    result = nas.search("toy", "digits", "random", out=tmp_path / "run", settings=settings)
    assert sizes[result.genotype] == min(sizes.values())


@pytest.mark.parametrize("method", ["darts", "spos"])
def test_a_supernet_delivers_a_network_within_the_bound(tmp_path, sizes, method):
    settings = {k: v for k, v in TINY.items() if method == "spos" or k != "trials"}
    if method == "spos":
        settings["trials"] = 10
    limit = sorted(sizes.values())[5]
    settings |= {"constraint": [f"params<={limit}"]}
    result = nas.search("toy", "digits", method, out=tmp_path / "run", settings=settings)
    assert result.metrics["params"] <= limit


def test_a_bound_that_nothing_keeps_is_told_and_the_nearest_is_taken(tmp_path, sizes):
    told, settings = Told(), FEW | {"constraint": ["params<=10"], "trials": 6}
    result = nas.search("toy", "digits", "random", out=tmp_path / "run", settings=settings, progress=told)
    tried = {sizes[trial.genotype] for trial in result.history}
    assert sizes[result.genotype] == min(tried) < max(tried)
    assert any("constraint" in note for note in told.notes)


def _dominates(a, b):
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b


def test_a_front_holds_exactly_what_no_other_trial_beats(runs):
    folder = runs("pareto")
    result = nas.load_result(folder)
    told = json.loads((folder / "front.json").read_text())["front"]
    kept = [t for t in result.history if t.state == "done" and t.metrics["params"] <= 5e4]
    scores = {t.number: (t.metrics["val_acc"], -t.metrics["macs"]) for t in kept}
    front = {n for n in scores if not any(_dominates(scores[other], scores[n]) for other in scores)}
    assert front
    assert {member["trial"] for member in told} == front
    assert {trial.number for trial in result.front} == front
    for member in told:
        trial = result.history[member["trial"]]
        assert tuple(member["genotype"]) == trial.genotype
        assert member["choices"] == result.space.choices(trial.genotype)
        assert member["metrics"] == dict(trial.metrics)
    assert result.metrics["params"] <= 5e4


def test_a_front_of_many_trials_leaves_out_what_breaks_the_bound(tmp_path, sizes):
    """Accuracy aside, larger networks are better here, and those that take less memory."""
    settings = FEW | {"objective": ["params", "-activation_bytes"], "constraint": [f"params<={LIMIT}"]}
    result = nas.search("toy", "digits", "nsga2", out=tmp_path / "run", settings=settings)
    scores = [(t.metrics["params"], -t.metrics["activation_bytes"], t.number) for t in result.history]
    kept = [score for score in scores if score[0] <= LIMIT]
    front = {s[2] for s in kept if not any(_dominates(other[:2], s[:2]) for other in kept)}
    assert 1 < len(front) < len(kept) < len(scores) == 27
    assert {trial.number for trial in result.front} == front
    assert result.metrics["params"] == max(score[0] for score in kept)  # best in the first objective
    assert result.genotype in {trial.genotype for trial in result.front}
    said = nas_command("check", tmp_path / "run")
    assert said.code == 0
