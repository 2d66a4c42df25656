"""The README tells the truth: its space runs, its pictures and files exist, its commands are commands."""

import re
from pathlib import Path

import torch

import nas

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text()


def test_the_example_space_is_searched_from_any_folder(tmp_path, monkeypatch):
    """And keeps the promises that searches on shared weights rely on."""
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (code,) = (block for block in blocks if block.startswith("# my_space.py"))
    assert len([line for line in code.splitlines() if line.strip()]) <= 28
    (tmp_path / "my_space.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    settings = {"trials": 2, "epochs": 1, "search_images": 256, "top_k": 1, "retrain": {"epochs": 1}}
    settings["baselines"] = False
    result = nas.search("my_space.py:make", "digits", "evolution", out="run", settings=settings)
    assert result.folder.joinpath("manifest.json").is_file()
    assert set(result.space.choices(result.genotype)) == {f"block{i}" for i in range(4)}
    nas.check_space(result.space, torch.randn(2, 1, 8, 8), samples=1, supernet=True)


def test_every_file_named_exists():
    root = README.parent
    named = re.findall(r"\]\(([^)]+)\)", TEXT) + re.findall(
        r"`((?:spaces|nas|scripts|results)/[\w/.-]+)`", TEXT
    )
    named = [name.partition("#")[0] for name in named if not name.startswith("http")]
    missing = [name for name in named if not (root / name).exists()]
    assert not missing
