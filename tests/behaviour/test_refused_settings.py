"""Settings that cannot be meant are refused before anything is trained or written, and named."""

import math

import pytest
from using import TINY, nas_command, refused

import nas

NAN, HUGE = math.nan, 10**15


@pytest.fixture
def asked(tmp_path):
    """Asserts that a search with such settings is refused by what it names, and leaves no folder."""

    def ask(*names, space="toy", task="digits", method="random", without=(), **settings):
        given = {name: value for name, value in (TINY | settings).items() if name not in without}
        out = tmp_path / "run"
        refused(lambda: nas.search(space, task, method, out=out, settings=given), *names)
        assert not out.exists()

    return ask


@pytest.mark.parametrize(
    ("settings", "nearest"),
    [
        ({"epoch": 3}, "epochs"),
        ({"method": "evolutoin"}, "evolution"),
        ({"method": "optuna:TPESamplr"}, "TPESampler"),
        ({"space": "nasbench2001"}, "nasbench201"),
        ({"space_settings": {"widht": 3}}, "width"),
        ({"task": "digit"}, "digits"),
        ({"preset": "quik"}, "quick"),
        ({"method": "evolution", "searcher": {"populaton": 3}}, "population"),
        ({"retrain": {"weight_decy": 1}}, "weight_decay"),
        ({"objective": ["val_ac"]}, "val_acc"),
        ({"constraint": ["parms<=3e4"]}, "params"),
        ({"fidelity": "epohcs=3"}, "epochs"),
        ({"execution": "bached"}, "batched"),
    ],
    ids=str,
)
def test_an_unknown_name_is_answered_with_the_nearest(asked, settings, nearest):
    asked(nearest, **settings)


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "epochs": [0, -1, 3.5, "three", True, NAN, HUGE],
        "trials": [0, HUGE, "many", [3]],
        "budget": [0, -1, NAN, math.inf, "soon", "-5m"],
        "seed": [-1, 2**70, 0.5, "lucky"],
        "top_k": [0, -3],
        "max_failures": [0],
        "workers": [-2, "many", 10**6],
        "early_stop": [1.5, -0.1, NAN],
        "search_images": [-1, NAN],
        "device": ["cuda:77", "quantum"],
        "trial_timeout": [0, "never"],
        "preset": [3],
        "export": ["perhaps"],
        "storage": ["nonsense", "carrier-pigeon://x"],
        "retrain": [3, {"lr": NAN}, {"lr": -1}, {"lr": "fast"}, {"epochs": 0}, {"batch": 0}, {"momentum": 2}],
        "trial": [{"label_smoothing": 7}, {"precision": "lots"}],
        "space_settings": [{"width": "wide"}, {"width": [8]}],
        "exclude": ["/nowhere/suspects.json"],
    }.items(),
    ids=str,
)
def test_a_value_of_the_wrong_type_or_range_is_refused_by_its_name(asked, name, values):
    for value in values:
        inner = next(iter(value)) if isinstance(value, dict) else name
        asked(inner, **{name: value})


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "objective": ["", "val_acc +", "nan*val_acc", "__import__('os')", "9" * 5000],
        "constraint": ["params", "params=<5", "params<=", "params<=nan", "params<=5<=6", "<=3"],
        "fidelity": ["", "epochs", "epochs=0", "epochs=1,epochs=2", "epochs=1,width=2", "epochs=1,width=nan"],
        "rungs": ["junk", "epochs=1;;epochs=2", "epochs=0", "epochs=1,width=0.5;epochs=1,width=0.25"],
    }.items(),
    ids=str,
)
def test_a_text_that_says_nothing_is_refused_by_its_subject(asked, name, values):
    halving = {"scheduler": "successive-halving"} if name == "rungs" else {}
    for value in values:
        as_given = [value] if name in ("objective", "constraint") else value
        subject = {"objective": "", "rungs": "", "constraint": "constraint", "fidelity": "fidelity"}[name]
        asked(subject, **{name: as_given}, **halving)
    if name == "objective":
        asked("val_acc", objective=["val_acc", "val_acc"])


@pytest.mark.parametrize(
    ("method", "searcher", "name"),
    [
        ("evolution", {"population": 1}, "population"),
        ("evolution", {"population": 5, "tournament": 50}, "tournament"),
        ("nsga2", {"crossover": 1.5}, "crossover"),
        ("random", {"population": 5}, "population"),
        ("guided", {"surrogate": "oracle"}, "surrogate"),
    ],
    ids=str,
)
def test_settings_of_a_searcher_are_checked_before_it_searches(asked, method, searcher, name):
    asked(name, method=method, searcher=searcher)


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("darts", {"trials": 3}),
        ("darts", {"trial_timeout": 5}),
        ("darts", {"searcher": {"population": 5}}),
        ("darts", {"method_settings": {"parts": 2}}),
        ("is-darts", {"objective": ["-params"]}),
        ("evolution", {"alphas": {"lr": 1e-3}}),
        ("evolution", {"guard": False}),
        ("evolution", {"supernet": {"epochs": 2}}),
        ("random", {"memory": "8GiB"}),
        ("random", {"eta": 4}),
        ("random", {"warm_start": "parent"}),
        ("random", {"repeats": 3}),
        ("random", {"latency_table": "table.json"}),
        ("spos", {"scheduler": "hyperband"}),
    ],
    ids=str,
)
def test_a_setting_that_the_method_does_not_use_is_refused_by_name(asked, method, setting):
    name = next(iter(setting))
    without = ("trials",) if "darts" in method and name != "trials" else ()
    asked("parts" if name == "method_settings" else name, method=method, without=without, **setting)


def test_a_folder_of_alphas_that_is_not_there_is_refused_before_a_folder_is_begun(asked):
    asked("seed_alphas", method="darts", without=("trials",), seed_alphas="/nowhere")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_size_that_no_network_can_have_is_refused(asked):
    for width in (0, 10**9, HUGE):
        asked("toy", space_settings={"width": width})


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (photos := tmp_path / "photos").mkdir()
    (photos / "cat.txt").write_text("cat")
    for out in (photos, photos / "cat.txt", photos / "cat.txt" / "run"):
        refused(lambda out=out: nas.search("toy", "digits", "random", out=out, settings=TINY), out)
    for name in ("two\nlines", "CON", "x" * 300, "nul\0"):
        refused(lambda n=name: nas.search("toy", "digits", "random", out=tmp_path / n, settings=TINY))
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert [path.read_text() for path in photos.iterdir()] == ["cat"]


@pytest.mark.parametrize(
    ("arguments", "code", "names"),
    [
        (["serch"], 2, ["search"]),
        (["search", "--epoks", "3"], 2, ["--epochs"]),
        (["search", "--epochs", "0"], 2, ["epochs"]),
        (["search", "--set", "retrain"], 2, ["retrain"]),
        (["search", "--space", "toyy"], 3, ["'toy'"]),
        (["search", "--task", "npz:/nowhere.npz", "--space", "toy"], 3, ["/nowhere.npz"]),
        (["search", "--config", "/nowhere.toml"], 2, ["/nowhere.toml"]),
        (["validate", "toyy"], 3, ["'toy'"]),
        (["audit", "digit"], 2, ["digits"]),
        (["benchmark", "nasbench202"], 2, ["nasbench201"]),
        (["benchmark", "nasbench201", "--tables", "/nowhere"], 2, ["/nowhere"]),
        (["serve", "/nowhere", "--max-upload", "lots"], 2, ["max-upload"]),
    ],
    ids=str,
)
def test_the_command_says_what_was_wrong_and_ends_with_the_code_of_its_kind(arguments, code, names):
    said = nas_command(*arguments)
    assert said.code == code
    assert all(name in said.err for name in names)
    assert not said.out


def test_a_folder_that_is_not_there_is_named_by_every_command(tmp_path):
    more = {"retrain": ["--task", "digits", "--out", tmp_path / "out"], "predict": ["cat.png"]}
    for command in ("predict", "check", "report", "retrain", "export", "draw", "serve"):
        said = nas_command(command, tmp_path / "absent", *more.get(command, []))
        assert said.code == 2, command
        assert str(tmp_path / "absent") in said.err, command
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "place"),
    [
        pytest.param(b"", "", id="empty"),
        pytest.param(b"- epochs: 3\n", "line 1", id="no TOML"),
        pytest.param(b"trials = 3\ntrials = 4\n", "line 2", id="a key twice"),
        pytest.param(b"trials = 3\n\nspace = toy\n", "line 3", id="no value"),
        pytest.param(b"space = '\xff\xfe'\n", "", id="no text"),
        pytest.param(b"trials = " + b"[" * 100_000, "", id="deep"),
        pytest.param(b"#" * 20_000_000, "", id="huge"),
        pytest.param(b"trails = 3\n", "trials", id="unknown"),
        pytest.param(b"trials = inf\n", "trials", id="infinite"),
    ],
)
def test_a_file_of_settings_that_cannot_be_read_is_named_with_the_place(tmp_path, content, place):
    (tmp_path / "job.toml").write_bytes(content)
    said = nas_command("search", "--config", tmp_path / "job.toml", "--out", tmp_path / "run")
    assert said.code == 2
    assert "job.toml" in said.err
    assert place in said.err
    assert not (tmp_path / "run").exists()


def test_numbers_may_be_text_and_whole_numbers_floats(tmp_path):
    """What a shell or a TOML file makes of a number is meant as one."""
    settings = TINY | {"trials": "1", "epochs": 1.0, "retrain": {"epochs": "1", "lr": "5e-2"}}
    result = nas.search("toy", "digits", "random", out=tmp_path / "run", settings=settings)
    assert len(result.history) == 1


def test_code_that_only_a_file_names_is_not_run(tmp_path):
    """A configuration from somebody else may name any code; it has to be named by the user, too."""
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "job.toml").write_text(f"space = '{tmp_path}/theirs.py:make'\nmethod = 'random'\n")
    said = nas_command("search", "--config", tmp_path / "job.toml", "--out", tmp_path / "run")
    assert said.code == 2
    assert "theirs.py" in said.err
    assert not (tmp_path / "ran").exists()
