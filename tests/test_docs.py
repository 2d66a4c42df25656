"""The guides tell the truth: their programs run, what they name exists, their figures were measured."""

import re
import shlex
from pathlib import Path

import pytest
import typer

import nas
from nas.__main__ import app
from nas.cli.app import SWITCHES
from nas.searchers.method_names import METHODS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GUIDES = sorted(DOCS.glob("*.md"))


def block(guide, kind, starts):
    """The one block of code of a kind in a guide that holds certain words."""
    found = re.findall(rf"```{kind}\n(.*?)```", (DOCS / guide).read_text(), re.DOTALL)
    (code,) = (text for text in found if starts in text)
    return code


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(guide):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", guide.read_text())
    assert not [link for link in links if not link.startswith("http") and not (DOCS / link).exists()]


def command_lines(text):
    """The words of each `nas COMMAND ...` in the blocks of a shell, of YAML and of plain text."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    code = "".join(code for kind, code in blocks if kind in ("sh", "bash", "yaml", ""))
    for line in code.replace("\\\n", " ").splitlines():
        plain = re.sub(r"(^|\s)#.*", "", line)
        if "args:" in line:
            plain = re.sub(r"[][,\" ]+", " ", plain)
        for found in re.findall(r"(?:^ *|[:;] +|-m )nas +([a-z].*?)(?=;|   |$)", plain):
            yield [word for word in shlex.split(found.removesuffix(" ...")) if word not in SWITCHES]


@pytest.mark.parametrize("guide", [*GUIDES, ROOT / "README.md"], ids=lambda path: path.name)
def test_every_command_line_is_one(guide):
    commands = typer.main.get_command(app).commands
    for name, *arguments in command_lines(guide.read_text()):
        assert name in commands
        commands[name].make_context(name, arguments)


def test_every_guide_is_listed():
    text = (DOCS / "README.md").read_text()
    assert {path.name for path in GUIDES} - {"README.md"} <= set(re.findall(r"\]\(([\w.-]+)\)", text))


def test_the_start_leads_to_a_model_of_ones_own_space(tmp_path, monkeypatch, capsys):
    before, after = block("start.md", "diff", "conv_").splitlines()
    space = (ROOT / "examples" / "plug" / "space.py").read_text()
    assert space.count(before[1:]) == 1
    (tmp_path / "my_space.py").write_text(space.replace(before[1:], after[1:]))
    monkeypatch.chdir(tmp_path)
    made = nas.load("my_space.py:make")
    assert "conv_7" in made.decisions[1].options
    small = {"trials": 2, "epochs": 1, "search_images": 200, "baselines": False, "top_k": 1}
    settings = small | {"retrain": {"epochs": 1}}
    nas.search("my_space.py:make", "digits", "evolution", out="results/mine", settings=settings)
    exec(block("start.md", "python", "load_result"), {})
    assert "conv_" in capsys.readouterr().out


def test_the_tracker_in_the_guide_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(block("tracking.md", "python", "trackers="), {})
    told = capsys.readouterr().out
    assert "search 0" in told and "retrain 1" in told and told.endswith("finished\n")


def test_the_method_in_the_guide_is_one():
    code = block("search.md", "python", "nas.Method")
    made = {}
    exec(code[: code.index("nas.search(")], made)
    assert isinstance(made["mine"], nas.Method) and made["mine"].regularizers


def test_methods_are_known_and_their_figures_are_those_of_the_results():
    text = (DOCS / "methods.md").read_text()
    named = set(re.findall(r"^\| `([a-z0-9-]+)`", text, re.MULTILINE))
    assert named and named <= set(METHODS)
    measured = (ROOT / "README.md").read_text() + (ROOT / "results" / "README.md").read_text()
    figures = re.findall(r"\d+\.\d+ ± \d+\.\d+|\d\d\.\d\d, \d\d\.\d\d|0\.\d{4} \([^)]*\)", text)
    assert len(figures) > 20
    assert not [figure for figure in figures if figure not in measured]
