"""The public names, and how fast the command answers."""

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import nas

ROOT = Path(nas.__file__).parent.parent


@pytest.mark.parametrize("name", nas.__all__)
def test_every_public_name_is_what_its_home_calls_it(name):
    home = sys.modules[nas._HOME[name]] if getattr(nas, name) is not None else None
    assert getattr(nas, name) is getattr(home, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        nas.serach  # noqa: B018


def test_help_does_not_wait_for_torch():
    heavy = ("torch", "optuna", "matplotlib", "numpy")
    code = f"import sys, nas.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_thin_and_use_public_names_only(script):
    """Those that measure a part of the engine may import the part from its own module."""
    assert len(script.read_text().splitlines()) < 200
    part = script.name.startswith(("bench_", "soak", "timing"))
    assert not list(forbidden(ast.parse(script.read_text()), parts=part))


def forbidden(tree, *, parts):
    """Every import of the engine's modules, or with `parts` every use of a private name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [node.attr] if parts else []
        else:
            continue
        inner = [name for name in names if name.startswith("nas.")]
        private = [name for name in names if re.search(r"(^|\.)_(?!_)", name)]
        yield from private if parts else inner


def test_the_scripts_work_together(tmp_path, monkeypatch, capsys):
    """One as a process of its own, in another folder."""
    small = {"trials": 2, "epochs": 1, "search_images": 200, "top_k": 1, "retrain": {"epochs": 1}}
    space = {"space_settings": {"width": 4}}
    found = nas.search("toy", "digits", "random", out=tmp_path / "found", settings=small | space)
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "plot.py"), str(found.folder), str(tmp_path / "pictures")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert str(tmp_path / "pictures" / "cells.png") in done.stdout
    x, y = load_digits(return_X_y=True)
    few = x[:300].reshape(-1, 8, 8).astype(np.uint8)
    np.savez(tmp_path / "few.npz", x_train=few, y_train=y[:300])
    script = str(ROOT / "scripts" / "retrain.py")
    monkeypatch.setattr(
        sys, "argv", [script, str(found.folder), f"npz:{tmp_path}/few.npz", str(tmp_path / "again")]
    )
    runpy.run_path(script, run_name="__main__")
    assert float(capsys.readouterr().out) > found.metrics["test_acc"]
