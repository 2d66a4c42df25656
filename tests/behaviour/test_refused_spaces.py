"""Spaces that break a promise: what is wrong is named, with the decision, the option or the line."""

import random

import pytest
import torch
from torch import nn
from using import TINY, nas_command, refused

import nas

X = torch.linspace(-1, 1, 4 * 64).view(4, 1, 8, 8)
SHARED = nn.Conv2d(4, 4, 1)


def _conv(kernel, wide=4):
    return lambda: nn.Conv2d(4, wide, kernel, padding=kernel // 2)


OPTIONS = {"small": _conv(1), "large": _conv(3)}


class _Raising(nn.Module):
    def forward(self, x):
        raise ValueError("my fault")


class _Infinite(nn.Module):
    def forward(self, x):
        return x / 0


def _net(*body, classes=10):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)]
    return nn.Sequential(nn.Conv2d(1, 4, 1), *body, *head)


def _asking(**options):
    return lambda choose: _net(choose.op("block", {**OPTIONS, **options}))


def _raises(choose):
    choose.op("block", OPTIONS)
    raise RuntimeError("my space broke")


def _endless(choose):
    depth = 0.0
    while True:
        depth += choose.value(f"block{depth}", [1, 1.5])


def _recursive(choose):
    return _recursive(choose)


def _asks_twice(choose):
    return _net(choose.op("block", OPTIONS), choose.op("block", {"other": _conv(1), "one": _conv(3)}))


FAULTY = {
    "no decisions": (lambda choose: _net(), {}, ["mine"]),
    "no options": (lambda choose: _net(choose.op("block", {})), {}, ["block"]),
    "no values": (lambda choose: _net(*[_conv(1)()] * choose.value("depth", [])), {}, ["depth"]),
    "one option": (lambda choose: _net(choose.op("block", {"small": _conv(1)})), {}, ["block", "small"]),
    "build raises": (_raises, {}, ["my space broke", "test_refused_spaces.py"]),
    "an option raises": (_asking(bad=_Raising), {}, ["block", "bad", "my fault"]),
    "an option of another shape": (_asking(wide=_conv(1, wide=5)), {}, ["block", "wide"]),
    "an option that is infinite": (_asking(bad=_Infinite), {}, ["block", "bad"]),
    "an option that is no function": (_asking(bad=3), {}, ["int"]),
    "options share a module": (_asking(shared=lambda: SHARED), {}, ["block", "shared"]),
    "no network": (lambda choose: choose.op("block", OPTIONS) and None, {}, ["NoneType"]),
    "no logits": (
        lambda choose: nn.Sequential(nn.Conv2d(1, 4, 1), choose.op("block", OPTIONS)),
        {},
        ["logits"],
    ),
    "one name, two decisions": (_asks_twice, {}, ["block"]),
    "build draws at random": (lambda c: _net(c.op(f"block{random.random()}", OPTIONS)), {}, ["block0."]),
    "without end": (_endless, {}, ["block"]),
    "recursion": (_recursive, {}, ["mine"]),
    "names that are none": (_asking(**{"": _conv(1)}), {}, ["block"]),
    "project out of range": (_asking(), {"project": lambda decisions, scores: (7,)}, ["project"]),
    "project returns text": (_asking(), {"project": lambda decisions, scores: "best"}, ["project"]),
    "project ignores its scores": (_asking(), {"project": lambda decisions, scores: (0,)}, ["project"]),
    "project raises": (_asking(), {"project": lambda decisions, scores: {}["gone"]}, ["project", "gone"]),
}
"""By what is wrong: build, further arguments of the space, and what must be named."""


@pytest.mark.parametrize("fault", FAULTY)
def test_what_is_wrong_with_a_space_is_named(fault):
    build, more, names = FAULTY[fault]
    refused(lambda: nas.check_space(nas.Space("mine", build, **more), X), *names, by=nas.SpaceError)


def test_a_sound_space_is_passed():
    nas.check_space(nas.Space("mine", _asking()), X)


@pytest.mark.parametrize(
    "fault",
    ["no options", "build raises", "no network", "build draws at random", "project raises"],
)
@pytest.mark.parametrize("method", ["random", "darts"])
def test_a_search_refuses_a_broken_space_before_it_begins(tmp_path, fault, method):
    build, more, names = FAULTY[fault]
    settings = {k: v for k, v in TINY.items() if method == "random" or k != "trials"}
    space, out = nas.Space("mine", build, **more), tmp_path / "run"
    refused(lambda: nas.search(space, "digits", method, out=out, settings=settings), *names)
    assert not out.exists()


def test_a_space_that_does_not_fit_the_images_or_classes_is_refused_with_both(tmp_path):
    space = nas.Space("mine", lambda choose: _net(choose.op("block", OPTIONS), classes=7))
    words = refused(lambda: nas.search(space, "digits", "random", out=tmp_path / "run", settings=TINY))
    assert "7" in words
    assert "10" in words
    colour = nas.Space("mine", lambda choose: nn.Sequential(nn.Conv2d(3, 1, 1), _asking()(choose)))
    refused(lambda: nas.search(colour, "digits", "random", out=tmp_path / "run", settings=TINY), "(1, 8, 8)")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["darts", "spos"])
def test_values_cannot_be_searched_on_shared_weights_and_are_named(tmp_path, method):
    def build(choose):
        return _net(*(choose.op(f"block{i}", OPTIONS) for i in range(choose.value("depth", [1, 2]))))

    settings = {k: v for k, v in TINY.items() if method == "spos" or k != "trials"}
    space, out = nas.Space("mine", build), tmp_path / "run"
    refused(lambda: nas.search(space, "digits", method, out=out, settings=settings), "depth")
    assert not out.exists()
    nas.check_space(space, X)


FILES = {
    "syntax error": ("import nas\n\ndef make(:\n", "make", ["line 3"]),
    "import error": ("import nas\nimport nowhere_to_be_found\n", "make", ["line 2", "nowhere_to_be_found"]),
    "raises on import": ("\n\n\nraise ValueError('at once')\n", "make", ["line 4", "at once"]),
    "no such function": ("def make(): pass\n", "mak", ["'make'"]),
    "returns no space": ("def make(): return 3\n", "make", ["int"]),
    "raises": ("def make():\n    return 1 / 0\n", "make", ["line 2", "division by zero"]),
    "needs a setting": ("def make(width): pass\n", "make", ["width"]),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_file_that_makes_no_space_is_named_with_the_line_of_its_author(tmp_path, fault):
    text, function, names = FILES[fault]
    (tmp_path / "theirs.py").write_text(text)
    said = nas_command("validate", f"{tmp_path}/theirs.py:{function}")
    assert said.code == 3
    assert not [name for name in ["theirs.py", *names] if name not in said.err], said.err


def test_validate_passes_what_is_sound_and_fails_what_is_not(tmp_path):
    good = "import nas\nfrom torch import nn\n\ndef make(classes=10, width=4):\n"
    good += "    def build(choose):\n"
    good += "        ops = {k: lambda k=k: nn.Conv2d(1, width, int(k), padding=int(k) // 2) for k in '135'}\n"
    good += "        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]\n"
    good += "        return nn.Sequential(choose.op('block', ops), *head)\n"
    good += "    return nas.Space('theirs', build)\n"
    for text, code in (
        (good, 0),
        (good.replace("int(k) // 2", "0"), 3),
        (good.replace(", classes)", ", 3)"), 3),
    ):
        (tmp_path / "theirs.py").write_text(text)
        assert nas_command("validate", f"{tmp_path}/theirs.py:make").code == code
    (tmp_path / "theirs.py").write_text(good)
    assert nas_command("validate", f"{tmp_path}/theirs.py:make", "--set", "width=7").code == 0
    assert nas_command("validate", f"{tmp_path}/theirs.py:make", "--set", "depth=7").code == 3


def test_a_decision_that_changes_nothing_is_named(tmp_path):
    text = "import nas\nfrom nas.spaces.toy import toy\n\ndef make():\n    def build(choose):\n"
    text += "        choose.value('learning_rate', [0.1, 0.01])\n        return toy().build(choose)\n"
    (tmp_path / "theirs.py").write_text(text + "    return nas.Space('theirs', build)\n")
    said = nas_command("validate", f"{tmp_path}/theirs.py:make")
    told = [line for line in (said.out + said.err).splitlines() if "learning_rate" in line]
    assert any("warning" in line or "error" in line for line in told)
