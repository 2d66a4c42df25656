"""The public names, and the scripts that use them."""

import importlib
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import nas

ROOT = Path(nas.__file__).parent.parent


def test_every_public_name_is_what_its_home_calls_it():
    for name in nas.__all__:
        assert getattr(nas, name) is getattr(importlib.import_module(nas._HOME[name]), name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        nas.serach  # noqa: B018


def test_the_scripts_work_together(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = {"trials": 2, "epochs": 1, "search_images": 200, "top_k": 1, "retrain": {"epochs": 1}}
    space = {"space_settings": {"width": 4}}
    found = nas.search("toy", "digits", "random", out="found", settings=small | space)
    x, y = load_digits(return_X_y=True)
    np.savez("few.npz", x_train=x[:200].reshape(-1, 8, 8).astype(np.uint8), y_train=y[:200])
    said = {}
    for script, *arguments in (("plot", "found", "pictures"), ("retrain", "found", "npz:few.npz", "again")):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
        said[script] = capsys.readouterr().out
    assert "pictures/cells.png" in said["plot"] and Path("pictures/cells.png").is_file()
    assert float(said["retrain"]) > found.metrics["test_acc"]
