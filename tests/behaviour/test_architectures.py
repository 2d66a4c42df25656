"""Architectures as data: words and notations lead back, projections are valid, sampling and mutation fair."""

import itertools
import json
import math
import re
from collections import Counter
from functools import partial

import numpy as np
import pytest
import surface
from small_spaces import at_most_two, bounded, cell, chain, depths

import nas
from nas.spaces import nasbench201 as nb201

SPACES = {
    "toy": partial(nas.load, "toy", width=4),
    "nasbench201": partial(nas.load, "nasbench201", width=4, cells=1),
    "darts": partial(nas.load, "darts", width=4, cells=3),
    "nasbench101": partial(nas.load, "nasbench101", width=8, stacks=1, cells=1),
    "by hand": cell,
    "a chain": chain,
    "depths": depths,
    "bounded": bounded,
}
each_space = pytest.mark.parametrize("name", [name for name in SPACES if name not in ("toy", "a chain")])
NOTED = ("nasbench201", "darts", "nasbench101")
"""The spaces whose architectures the field has a way to write."""


def noise(space, draw):
    return [draw.random(len(d.options)) for d in space.decisions]


def spread(counts, cells):
    """How many standard deviations a chi-square of counts is above what equal chances give."""
    total = sum(counts.values())
    wanted = total / cells
    missing = cells - len(counts)
    chi = sum((count - wanted) ** 2 / wanted for count in counts.values()) + missing * wanted
    return (chi - (cells - 1)) / math.sqrt(2 * (cells - 1))


# -- words and notations -----------------------------------------------------------------------------------


@each_space
def test_words_lead_back_to_the_genotype(name):
    space = SPACES[name]()
    for genotype in surface.genotypes(space, 30):
        words = space.choices(genotype)
        assert list(words) == [d.name for d in space.decisions]
        assert [d.options.index(words[d.name]) for d in space.decisions] == list(genotype)
        assert space.genotype(dict(reversed(words.items()))) == genotype


def test_words_that_are_no_architecture_are_refused_by_name():
    space = SPACES["toy"]()
    words = space.choices((0, 1, 2))
    first, *_ = words
    with pytest.raises(nas.SpaceError, match=re.escape(first)):
        space.genotype({name: option for name, option in words.items() if name != first})
    with pytest.raises(nas.SpaceError, match="sep_conv_9x9"):
        space.genotype({**words, first: "sep_conv_9x9"})
    with pytest.raises(nas.SpaceError, match="no such edge"):
        space.genotype({**words, "no such edge": "skip_connect"})
    for wrong in ((0, 1), (0, 1, 3), (0, 1, -1), (0, 1, 2, 0)):
        with pytest.raises(nas.SpaceError):
            space.choices(wrong)


@pytest.mark.parametrize("name", NOTED)
def test_the_fields_notation_leads_back_to_the_genotype(name):
    space = SPACES[name]()
    seen = {}
    for genotype in surface.genotypes(space, 50):
        text = space.notation.write(genotype)
        assert space.notation.parse(text) == genotype
        assert seen.setdefault(text, genotype) == genotype
    assert len(seen) > 40


def test_the_string_of_nasbench201_names_the_operation_of_each_edge():
    space = SPACES["nasbench201"]()
    text = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|none~2|"
    words = space.choices(space.notation.parse(text))
    # In the order of the string, which goes by the node that an edge leads to and then by its source.
    assert list(words.values()) == [op for op, _ in re.findall(r"(\w+)~(\d)", text)]


def test_the_classic_literal_of_darts_names_two_inputs_for_each_node():
    space = SPACES["darts"]()
    again = space.notation.write(space.notation.parse(surface.DARTS_V2))
    for kind in ("normal", "reduce"):
        pairs = [
            re.findall(r"\('(\w+)', (\d)\)", re.search(rf"\b{kind}=\[(.*?)\]", text).group(1))
            for text in (surface.DARTS_V2, again)
        ]
        nodes = [[set(found[i : i + 2]) for i in range(0, 8, 2)] for found in pairs]
        assert nodes[0] == nodes[1] and len(pairs[1]) == 8


def specification(*edges):
    """A cell of seven vertices as the published code writes it."""
    matrix = [[int(f"{src}->{dst}" in edges) for dst in range(7)] for src in range(7)]
    ops = ["conv3x3-bn-relu", "maxpool3x3", "conv1x1-bn-relu", "maxpool3x3", "maxpool3x3"]
    return json.dumps({"matrix": matrix, "ops": ["input", *ops, "output"]})


def test_the_matrix_of_nasbench101_names_edges_and_vertices():
    space = SPACES["nasbench101"]()
    edges = {"0->1", "0->2", "1->3", "2->3", "3->6", "0->6"}
    asked = space.asked(space.notation.parse(specification(*edges)))
    assert {name for name, option in asked.items() if option == "1"} == edges
    assert [asked[f"op{v}"] for v in (1, 2, 3)] == ["conv3x3-bn-relu", "maxpool3x3", "conv1x1-bn-relu"]
    # A vertex that nobody reads is none.
    again = space.notation.parse(specification(*edges, "0->5"))
    assert again == space.notation.parse(specification(*edges))


def test_a_cell_of_nasbench101_has_at_most_nine_edges():
    space = SPACES["nasbench101"]()
    nine = ("0->1", "0->2", "1->3", "2->3", "3->6", "0->6", "1->2", "1->6", "2->6")
    space.notation.parse(specification(*nine))
    with pytest.raises(nas.SpaceError):
        space.notation.parse(specification(*nine, "0->3"))
    assert max(sum(genotype[:21]) for genotype in surface.genotypes(space, 30)) == 9


@pytest.mark.parametrize("name", NOTED)
def test_what_is_no_architecture_in_a_notation_is_refused(name):
    parse = SPACES[name]().notation.parse
    for text in ("", "Genotype()", "|skip~0|", '{"matrix": []}', "none"):
        with pytest.raises(nas.SpaceError):
            parse(text)


# -- projection --------------------------------------------------------------------------------------------


@each_space
def test_any_scores_give_a_valid_architecture_that_is_its_own_projection(name):
    space, draw = SPACES[name](), np.random.default_rng(1)
    scores = [noise(space, draw) for _ in range(20)]
    scores += [[np.zeros(len(d.options)) for d in space.decisions]]
    scores += [[-1e6 * draw.random(len(d.options)) for d in space.decisions] for _ in range(3)]
    for rows in scores:
        genotype = space.nearest(rows)
        assert all(0 <= option < len(d.options) for option, d in zip(genotype, space.decisions, strict=True))
        assert space.nearest(space.one_hot(genotype)) == genotype
        network = space.network(genotype, meta=True)
        assert surface.parameters(network) > 0


def test_a_projection_follows_the_scores():
    space, draw = SPACES["nasbench201"](), np.random.default_rng(2)
    for _ in range(10):
        rows = noise(space, draw)
        assert space.nearest(rows) == tuple(int(row.argmax()) for row in rows)
    scores = [np.array([0.0, gain]) for gain in (3.0, -1.0, 2.0, 4.0)]
    assert bounded().nearest(scores) == (1, 0, 0, 1)


def test_a_darts_cell_keeps_the_two_strongest_inputs_of_each_node():
    """By the best operation but `none` of each edge, written out once more."""
    space, draw = SPACES["darts"](), np.random.default_rng(3)
    edges = [(src, dst) for dst in range(2, 6) for src in range(dst)]
    for _ in range(10):
        rows = noise(space, draw)
        wanted = []
        for kind in range(2):
            own = dict(zip(edges, rows[14 * kind : 14 * kind + 14], strict=True))
            kept = {
                edge
                for node in range(2, 6)
                for edge in sorted((e for e in edges if e[1] == node), key=lambda e: own[e][1:].max())[-2:]
            }
            wanted += [1 + int(own[edge][1:].argmax()) if edge in kept else 0 for edge in edges]
        assert space.nearest(rows) == tuple(wanted)


def test_a_projection_that_answers_nonsense_is_refused():
    for answer in ((0,), (0, 0, 7), (0, 0, -1)):
        space = nas.Space("wrong", SPACES["toy"]().build, lambda decisions, scores, answer=answer: answer)
        with pytest.raises(nas.SpaceError, match="wrong"):
            space.sample(np.random.default_rng(0))


# -- sampling, mutation, crossing ---------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "count"), [(SPACES["toy"], 27), (chain, 36)])
def test_sampling_of_free_decisions_is_uniform(make, count):
    space = make()
    counts = Counter(surface.genotypes(space, 120 * count))
    assert len(counts) == count == surface.size(space)
    assert spread(counts, count) < 4


def test_a_random_darts_cell_has_uniform_inputs_and_operations():
    space = SPACES["darts"]()
    found = surface.genotypes(space, 1500)
    last = [[i for i, option in enumerate(g[9:14]) if option] for g in found]  # the inputs of the last node
    assert spread(Counter(map(tuple, last)), 10) < 4
    options = Counter(option for g in found for option in g[:14] if option)
    assert spread(options, 7) < 4


@pytest.mark.parametrize(
    ("name", "count"), [("toy", 6), ("nasbench201", 24), ("by hand", 24), ("a chain", 6), ("bounded", 5)]
)
def test_mutation_reaches_every_neighbour_and_nothing_else(name, count):
    space, draw = SPACES[name](), np.random.default_rng(4)
    parent = (1, 0, 0, 1) if name == "bounded" else space.sample(draw)
    neighbours = set(space.neighbours(parent))
    reached = {space.mutate(parent, draw) for _ in range(60 * count)}
    assert parent not in reached
    assert reached == neighbours
    if name != "bounded":
        near = {
            (*parent[:i], option, *parent[i + 1 :])
            for i, d in enumerate(space.decisions)
            for option in range(len(d.options))
        }
        assert neighbours == near - {parent} and len(neighbours) == count
    else:
        # One less, or another one in place of either: a third convolution is not allowed.
        swapped = {(1, 1, 0, 0), (1, 0, 1, 0), (0, 1, 0, 1), (0, 0, 1, 1)}
        assert neighbours == {(1, 0, 0, 0), (0, 0, 0, 1)} | swapped


@each_space
def test_mutants_and_children_are_valid_and_near_their_parents(name):
    space, draw = SPACES[name](), np.random.default_rng(5)
    same = 0
    for mother, father in itertools.pairwise(surface.genotypes(space, 20)):
        mutant, child = space.mutate(mother, draw), space.cross(mother, father, draw)
        for found in (mutant, child):
            assert space.canonical(space.nearest(space.one_hot(found))) == found
        assert mutant != mother
        own = [option in pair for option, *pair in zip(child, mother, father, strict=True)]
        same += np.mean(own)
    assert same / 19 > (0.7 if name in ("darts", "nasbench101", "bounded", "depths") else 0.9999)


def test_a_child_takes_about_half_of_each_parent():
    space, draw = SPACES["nasbench201"](), np.random.default_rng(6)
    children = np.array([space.cross((0,) * 6, (3,) * 6, draw) for _ in range(300)])
    assert set(np.unique(children)) == {0, 3}
    assert np.all(np.abs((children == 0).mean(0) - 0.5) < 0.12)


# -- what means the same ------------------------------------------------------------------------------------


def test_options_that_are_not_asked_do_not_make_another_architecture():
    space = depths()
    words = {"depth": "1", "block0": "nor_conv_3x3", "block1": "nor_conv_3x3", "block2": "nor_conv_3x3"}
    one, other = space.genotype(words), space.genotype({**words, "block1": "nor_conv_1x1"})
    assert one != other and space.canonical(one) == space.canonical(other)
    assert space.asked(one) == space.asked(other) == {"depth": "1", "block0": "nor_conv_3x3"}
    assert surface.parameters(space.network(one)) == surface.parameters(space.network(other))
    found = list(space.enumerate())
    assert len(found) == len(set(found)) == surface.size(space) == 2 + 4 + 8
    assert set(surface.genotypes(space, 400)) == set(found)


def test_isomorphic_cells_have_one_identity_and_others_another(tmp_path):
    """Two nodes change places with all their edges; in the third cell one operation is another one."""
    texts = {
        "one": "|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|",
        "swapped": "|nor_conv_1x1~0|+|nor_conv_3x3~0|none~1|+|skip_connect~0|nor_conv_3x3~1|avg_pool_3x3~2|",
        "other": "|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|skip_connect~0|nor_conv_3x3~1|avg_pool_3x3~2|",
    }
    parse = SPACES["nasbench201"]().notation.parse
    named = {}
    for name, text in texts.items():
        only = nas.Space("only", cell(classes=3).build, lambda decisions, scores, text=text: parse(text))
        result = surface.search(tmp_path / name, space=only, trials=1, epochs=1)
        assert result.genotype == parse(text)
        named[name] = surface.identity(result.folder)
    assert named["one"] == named["swapped"] != named["other"]


# -- counts ------------------------------------------------------------------------------------------------


def test_the_number_of_architectures():
    wanted = {
        "toy": 27,
        "nasbench201": 15_625,
        "nasbench101": 1_824_025,
        "darts": ((1 * 3 * 6 * 10) * 7**8) ** 2,
        "by hand": 5**6,
        "depths": 2 + 4 + 8,
        "bounded": 1 + 4 + 6,
    }
    assert {name: surface.size(SPACES[name]()) for name in wanted} == wanted


@pytest.mark.parametrize("name", ["toy", "nasbench201", "depths", "bounded"])
def test_enumeration_gives_each_architecture_once(name):
    space = SPACES[name]()
    found = list(space.enumerate())
    assert len(set(found)) == len(found) == surface.size(space)
    assert set(surface.genotypes(space, 100)) <= set(found)
    if name == "bounded":
        assert set(found) == {g for g in itertools.product((0, 1), repeat=4) if sum(g) <= 2}
        assert at_most_two(space.decisions, space.one_hot((1, 0, 1, 0))) == (1, 0, 1, 0)


def test_nasbench201_has_6466_cells_of_different_names():
    space = SPACES["nasbench201"]()
    assert len({nb201.unique_string(genotype) for genotype in space.enumerate()}) == 6_466
