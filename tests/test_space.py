"""Spaces: what is valid, how it is drawn and varied, what is the same, how much there is, and bad input."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
import torch
from torch import nn

from nas.errors import SpaceError
from nas.space.choosers import MAX_RUNS
from nas.space.genotypes import Size, estimate
from nas.space.loading import load
from nas.space.space import Space
from nas.types import Decision

CONVS = {"one": lambda: nn.Conv2d(3, 3, 1), "three": lambda: nn.Conv2d(3, 3, 3, padding=1)}


def ring(decisions, scores):
    """Valid are the genotypes whose options sum to a multiple of three."""
    valid = [g for g in itertools.product(*(range(len(d.options)) for d in decisions)) if sum(g) % 3 == 0]
    return max(valid, key=lambda g: sum(row[i] for row, i in zip(scores, g, strict=True)))


def flat(*sizes, project=None):
    """A space of independent decisions with so many options each."""

    def build(choose):
        options = [{f"o{i}": nn.Identity for i in range(size)} for size in sizes]
        return nn.Sequential(*(choose.op(f"d{k}", offered) for k, offered in enumerate(options)))

    return Space("flat", build, project) if project else Space("flat", build)


def deep(depths=(1, 2, 3), options=2):
    """A depth, and a kernel for each layer of that depth."""

    def build(choose):
        kernels = {f"k{i}": (lambda i=i: nn.Conv2d(3, 3, 2 * i + 1, padding=i)) for i in range(options)}
        return nn.Sequential(
            *(choose.op(f"kernel{i}", kernels) for i in range(choose.value("depth", depths)))
        )

    return Space("deep", build)


def nested():
    """Two places whose second option asks one shared further decision."""

    def build(choose):
        def inner():
            return choose.op("inner", CONVS)

        return nn.Sequential(*(choose.op(name, {"id": nn.Identity, "in": inner}) for name in ("a", "b")))

    return Space("nested", build)


SPACES = {
    "toy": load("toy"),
    "nasbench201": load("nasbench201", width=4, cells=1),
    "darts": load("darts", width=4, cells=3),
    "ring": flat(3, 4, 2, project=ring),
    "deep": deep(),
    "nested": nested(),
}
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def is_valid(space, genotype):
    return space.nearest(space.one_hot(genotype)) == genotype or space.is_conditional


# -- listing ------------------------------------------------------------------------------------------


def test_decisions_come_in_the_order_they_are_asked_and_once():
    def build(choose):
        layers = [choose.op(name, CONVS) for name in ("z", "a", "z", "m", "a")]
        return nn.Sequential(*layers[: choose.value("cut", (2, 5))])

    decisions = Space("s", build).decisions
    assert [d.name for d in decisions] == ["z", "a", "m", "cut"]
    assert [d.mixable for d in decisions] == [True, True, True, False]
    assert decisions[0].options == ("one", "three") and decisions[3].options == ("2", "5")


def test_listing_takes_no_memory_and_draws_no_random_numbers():
    before = torch.get_rng_state()
    space = Space("wide", lambda choose: choose.op("x", {"big": lambda: nn.Linear(10**6, 10**6)}))
    assert len(space.decisions) == 1
    assert space.network((0,), meta=True).weight.is_meta
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_asked_twice_is_drawn_from_the_global_stream():
    space = SPACES["toy"]
    torch.manual_seed(1)
    first = space.network((2, 2, 2)).state_dict()
    torch.manual_seed(1)
    second = space.network((2, 2, 2)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_space_without_decisions_holds_one_architecture():
    space = Space("fixed", lambda _: nn.Linear(2, 2))
    assert space.size == Size(1, exact=True)
    assert list(space.enumerate()) == [()] == [space.sample(np.random.default_rng(0))]
    assert space.neighbours(()) == []
    with pytest.raises(SpaceError, match="single architecture"):
        space.mutate((), np.random.default_rng(0))


# -- drawing and varying ------------------------------------------------------------------------------


@each_space
def test_everything_drawn_is_valid_and_canonical(space):
    rng = np.random.default_rng(0)
    for genotype in space.neighbours(space.sample(rng)):
        assert is_valid(space, genotype)
    for _ in range(60):
        parent, other = space.sample(rng), space.sample(rng)
        found = [parent, space.mutate(parent, rng), space.cross(parent, other, rng)]
        for genotype in found:
            space.check(genotype)
            assert is_valid(space, genotype)
            assert space.canonical(genotype) == genotype


@each_space
def test_a_mutation_is_always_another_architecture(space):
    rng = np.random.default_rng(1)
    for _ in range(200):
        parent = space.sample(rng)
        assert space.canonical(space.mutate(parent, rng)) != space.canonical(parent)


@each_space
def test_the_same_stream_gives_the_same_architectures(space):
    def walk():
        rng = np.random.default_rng(7)
        chain = [space.sample(rng)]
        for _ in range(10):
            chain.append(space.mutate(chain[-1], rng))
        return chain, space.cross(chain[0], chain[-1], rng)

    assert walk() == walk()


def test_free_decisions_are_sampled_uniformly():
    space, rng = flat(3, 2), np.random.default_rng(0)
    counts = np.zeros((3, 2))
    for _ in range(3000):
        counts[space.sample(rng)] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 20.5  # chi-square, 5 degrees of freedom, p = 0.001


def test_darts_inputs_and_operations_are_sampled_uniformly():
    space, rng = SPACES["darts"], np.random.default_rng(0)
    start, draws = 9, 3000  # node 5 of the normal cell: edges from 0 to 4
    pairs = dict.fromkeys(itertools.combinations(range(5), 2), 0)
    operations = np.zeros(8)
    for _ in range(draws):
        edges = space.sample(rng)[start : start + 5]
        pairs[tuple(i for i, option in enumerate(edges) if option)] += 1
        operations += np.bincount(edges, minlength=8)
    counts = np.array([*pairs.values()])
    assert ((counts - draws / 10) ** 2 / (draws / 10)).sum() < 27.9  # 9 degrees of freedom, p = 0.001
    expected = 2 * draws / 7
    assert operations[0] == 3 * draws
    assert ((operations[1:] - expected) ** 2 / expected).sum() < 22.5  # 6 degrees, p = 0.001


def test_mutation_changes_one_free_decision_to_any_other_option():
    space, rng = SPACES["toy"], np.random.default_rng(0)
    children = [space.mutate((0, 1, 2), rng) for _ in range(600)]
    assert all(sum(a != b for a, b in zip(c, (0, 1, 2), strict=True)) == 1 for c in children)
    counts = [children.count(c) for c in set(children)]
    assert len(counts) == 6 and min(counts) > 60


def test_mutation_in_darts_changes_one_edge_or_swaps_one_input():
    space, rng = SPACES["darts"], np.random.default_rng(0)
    parent = space.sample(rng)
    near = set(space.neighbours(parent))
    assert {space.mutate(parent, rng) for _ in range(300)} <= near


def test_mutation_gives_up_when_project_ignores_its_scores():
    stuck = flat(3, 3, project=lambda decisions, scores: (0, 0))
    with pytest.raises(SpaceError, match=r"no mutation of .*'d0': 'o0'.* in 200 tries; does project ignore"):
        stuck.mutate((0, 0), np.random.default_rng(0))


@pytest.mark.parametrize("name", ["toy", "nasbench201"])
def test_a_child_takes_every_decision_from_a_parent(name):
    space, rng = SPACES[name], np.random.default_rng(0)
    from_mother = 0
    for _ in range(200):
        mother, father = space.sample(rng), space.sample(rng)
        child = space.cross(mother, father, rng)
        assert all(c in (m, f) for c, m, f in zip(child, mother, father, strict=True))
        from_mother += sum(c == m != f for c, m, f in zip(child, mother, father, strict=True)) / max(
            1, sum(m != f for m, f in zip(mother, father, strict=True))
        )
    assert 80 < from_mother < 120


def test_a_darts_child_has_no_edge_that_neither_parent_has():
    space, rng = SPACES["darts"], np.random.default_rng(0)
    for _ in range(200):
        mother, father = space.sample(rng), space.sample(rng)
        child = space.cross(mother, father, rng)
        assert all(c in (0, m, f) for c, m, f in zip(child, mother, father, strict=True))


# -- neighbours ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toy", "nested"])
def test_neighbours_by_brute_force(name):
    space = SPACES[name]
    everything = list(itertools.product(*(range(len(d.options)) for d in space.decisions)))
    for parent in space.enumerate():
        near = {
            space.canonical(g) for g in everything if sum(a != b for a, b in zip(g, parent, strict=True)) == 1
        } - {parent}
        assert space.neighbours(parent) == sorted(near)


def test_neighbours_in_darts_are_every_other_operation_and_every_swapped_input():
    space = SPACES["darts"]
    parent = space.sample(np.random.default_rng(3))
    near = set()
    blocks = [(cell + start, size) for cell in (0, 14) for start, size in ((0, 2), (2, 3), (5, 4), (9, 5))]
    for start, size in blocks:
        kept = [i for i in range(start, start + size) if parent[i]]
        free = [i for i in range(start, start + size) if not parent[i]]
        changed = [(i, i, op) for i in kept for op in range(1, 8) if op != parent[i]]
        for drop, add, op in [*changed, *itertools.product(kept, free, range(1, 8))]:
            child = list(parent)
            child[drop] = 0
            child[add] = op
            near.add(tuple(child))
    assert space.neighbours(parent) == sorted(near)


# -- sameness and size --------------------------------------------------------------------------------


def test_unasked_decisions_do_not_tell_architectures_apart():
    space = SPACES["deep"]
    assert [d.name for d in space.decisions] == ["depth", "kernel0", "kernel1", "kernel2"]
    assert space.canonical((0, 1, 1, 1)) == space.canonical((0, 1, 0, 1)) == (0, 1, 0, 0)
    assert space.canonical((1, 1, 1, 1)) == (1, 1, 1, 0)
    assert space.canonical((2, 1, 1, 1)) == (2, 1, 1, 1)
    assert list(space.asked((1, 1, 1, 1))) == ["depth", "kernel0", "kernel1"]
    assert list(space.asked((2, 1, 1, 1))) == list(space.choices((2, 1, 1, 1)))
    assert space.size == Size(2 + 4 + 8, exact=True)
    assert len(set(space.enumerate())) == 14


def test_a_decision_asked_from_two_candidates_counts_while_either_is_chosen():
    space = SPACES["nested"]
    assert [d.name for d in space.decisions] == ["a", "inner", "b"]
    assert space.canonical((0, 1, 0)) == (0, 0, 0)
    assert space.canonical((0, 1, 1)) == (0, 1, 1)
    assert space.canonical((1, 1, 0)) == (1, 1, 0)
    assert space.size == Size(7, exact=True)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (Size(15_625, exact=True), "15,625"),
        (Size(10**18, exact=True), "1e+18"),
        (Size(123_456 * 10**400, exact=True), "1.23e+405"),
        (Size(7, exact=False), "about 7 (estimated)"),
        (Size(123_456, exact=False), "about 120,000 (estimated)"),
        (Size(2 * 10**400, exact=False), "about 2.0e+400 (estimated)"),
    ],
)
def test_a_size_is_told_that_no_float_holds(size, words):
    assert str(size) == words


def test_sizes_beyond_every_float_are_estimated():
    decisions = [Decision(str(i), ("a", "b")) for i in range(1100)]
    found = estimate(decisions, lambda prefix: (*prefix, 0), free=True, aliases=lambda genotype: 2)
    assert found == 2**1099


@each_space
def test_equal_canonical_forms_are_equal_networks(space):
    rng = np.random.default_rng(0)
    for _ in range(10):
        genotype = tuple(int(rng.integers(len(d.options))) for d in space.decisions)
        genotype = genotype if space.is_conditional else space.sample(rng)
        one = space.network(genotype, meta=True).state_dict()
        two = space.network(space.canonical(genotype), meta=True).state_dict()
        assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in two.items()}


def test_sizes():
    assert SPACES["toy"].size == Size(27, exact=True)
    assert SPACES["nasbench201"].size == Size(15_625, exact=True)
    assert str(SPACES["nasbench201"].size) == "15,625"
    assert SPACES["darts"].size.exact and str(SPACES["darts"].size) == "1.08e+18"
    assert (
        SPACES["ring"].size == Size(len(list(SPACES["ring"].enumerate())), exact=True) == Size(8, exact=True)
    )


def test_the_closed_form_of_darts_counts_what_project_allows_at_one_node():
    space = SPACES["darts"]
    base = space.sample(np.random.default_rng(0))
    for start, inputs in ((0, 2), (2, 3), (5, 4)):
        valid = 0
        for edges in itertools.product(range(8), repeat=inputs):
            if sum(map(bool, edges)) == 2:  # anything else is far from valid; see the next line for a few
                genotype = base[:start] + edges + base[start + inputs :]
                valid += space.nearest(space.one_hot(genotype)) == genotype
        assert valid == inputs * (inputs - 1) // 2 * 7**2
    for edges in ((1, 1, 1), (1, 0, 0), (0, 0, 0)):
        genotype = base[:2] + edges + base[5:]
        assert space.nearest(space.one_hot(genotype)) != genotype
    assert space.count == ((1 * 3 * 6 * 10) * 7**8) ** 2


def test_the_estimate_is_within_a_factor_of_two():
    darts = dataclasses.replace(SPACES["darts"], count=None)
    assert not darts.size.exact and "estimated" in str(darts.size)
    assert 0.5 < darts.size.count / SPACES["darts"].count < 2
    tower = deep(tuple(range(1, 9)), options=4)
    assert not tower.size.exact
    assert 0.5 < tower.size.count / sum(4**k for k in range(1, 9)) < 2


def test_enumerate_is_sorted_and_complete():
    found = list(SPACES["ring"].enumerate())
    assert found == sorted(found)
    assert found == [g for g in itertools.product(range(3), range(4), range(2)) if sum(g) % 3 == 0]


# -- words --------------------------------------------------------------------------------------------


@each_space
def test_choices_and_genotype_are_inverse(space):
    genotype = space.sample(np.random.default_rng(0))
    words = space.choices(genotype)
    assert list(words) == [d.name for d in space.decisions]
    assert space.genotype(dict(reversed(words.items()))) == genotype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0->9": "none"}, "space 'toy': no decision '0->9'; did you mean '0->"),
        ({"0->1": "nor_conv_5x5"}, "decision '0->1': no option 'nor_conv_5x5'; did you mean 'nor_conv_3x3'"),
    ],
)
def test_wrong_words_are_refused(change, message):
    words = SPACES["toy"].choices((0, 0, 0))
    with pytest.raises(SpaceError, match=re.escape(message)):
        SPACES["toy"].genotype(words | change)


def test_a_missing_choice_is_refused():
    with pytest.raises(SpaceError, match="decision '1->2' is not chosen; wanted one of"):
        SPACES["toy"].genotype({"0->1": "skip_connect", "0->2": "skip_connect"})


@pytest.mark.parametrize(
    ("genotype", "message"),
    [
        ((0, 0), "has 3 decisions, got a genotype of 2"),
        ((0, 0, 3), "decision '1->2' got option 3, but its 3 options are 0 to 2"),
        ((0, -1, 0), "decision '0->2' got option -1"),
    ],
)
def test_wrong_genotypes_are_refused(genotype, message):
    for use in (SPACES["toy"].check, SPACES["toy"].choices, SPACES["toy"].one_hot, SPACES["toy"].network):
        with pytest.raises(SpaceError, match=message):
            use(genotype)


# -- faults of an author ------------------------------------------------------------------------------


def listed(build):
    return Space("mine", build).decisions


def test_no_options():
    with pytest.raises(SpaceError, match="decision 'x' has no options"):
        listed(lambda choose: choose.op("x", {}))
    with pytest.raises(SpaceError, match="decision 'd' has no options"):
        listed(lambda choose: nn.Linear(1, choose.value("d", ())))


@pytest.mark.parametrize("options", [5, "345", {"a": nn.Identity}, {1, 2}])
def test_values_that_are_no_list(options):
    message = (
        f"decision 'd': the options of value are of type {type(options).__name__}, wanted a list of plain"
    )
    with pytest.raises(SpaceError, match=message):
        listed(lambda choose: nn.Linear(1, choose.value("d", options)))


def test_two_values_of_one_name():
    with pytest.raises(SpaceError, match=r"decision 'd': two options have the same name in \('1', '1'\)"):
        listed(lambda choose: nn.Linear(1, int(choose.value("d", (1, "1")))))


def test_one_name_with_two_lists_of_options():
    def build(choose):
        return nn.Sequential(choose.op("x", CONVS), choose.op("x", {"one": CONVS["one"]}))

    message = r"'x' was first asked with options \('one', 'three'\), now with \('one',\); one name must mean"
    with pytest.raises(SpaceError, match=message):
        listed(build)


def test_one_name_for_a_value_and_a_module():
    with pytest.raises(SpaceError, match="one name must mean one decision"):
        listed(lambda choose: nn.Sequential(choose.op("x", CONVS), choose.value("x", ("one", "three"))))


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 201, "\x00", 7])
def test_names_that_nothing_could_record(name):
    with pytest.raises(SpaceError, match="names must be printable text of 1 to 200 characters"):
        listed(lambda choose: choose.op(name, CONVS))
    with pytest.raises(SpaceError, match="names must be printable text of 1 to 200 characters"):
        listed(lambda choose: choose.op("x", {name: nn.Identity}))


def test_candidates_that_are_a_list():
    with pytest.raises(SpaceError, match="'x': the options of op are a list, wanted a mapping from names"):
        listed(lambda choose: choose.op("x", [nn.Identity, nn.ReLU]))


def test_strange_but_printable_names_are_fine():
    names = {"<script>": nn.Identity, 'quo"te': nn.Identity, "ü & 界": nn.ReLU}
    space = Space("odd", lambda choose: choose.op("it's", names))
    assert space.decisions[0].options == tuple(names)
    assert isinstance(space.network((2,)), nn.ReLU)


def test_a_candidate_that_builds_no_module():
    message = "decision 'x', option 'bad': building it gave int, wanted an nn.Module"
    with pytest.raises(SpaceError, match=message):
        listed(lambda choose: choose.op("x", {"bad": lambda: 3}))


def test_a_candidate_that_is_a_built_module():
    message = "decision 'x', option 'bad' is a module that is built already \\(Conv2d\\), .* give a function"
    with pytest.raises(SpaceError, match=message):
        listed(lambda choose: choose.op("x", {"bad": nn.Conv2d(1, 1, 1)}))


def test_a_build_that_returns_no_network():
    with pytest.raises(SpaceError, match="build returned NoneType, wanted an"):
        listed(lambda choose: None)


def test_a_build_that_fails_is_reported_with_its_own_line():
    def build(choose):
        return nn.Sequential(choose.op("x", CONVS), nn.Linear(3, 1 // 0))

    line = build.__code__.co_firstlineno + 1
    with pytest.raises(SpaceError, match=rf"build failed: ZeroDivisionError.*test_space.py, line {line}: "):
        listed(build)


def test_a_build_that_runs_the_network():
    message = "build ran the network while it was being listed .decision 'x'."
    with pytest.raises(SpaceError, match=message):
        listed(lambda choose: choose.op("x", CONVS)(torch.zeros(1, 3, 4, 4)))


def test_decisions_that_are_asked_after_any_value_are_listed():
    def build(choose):
        if choose.value("kind", ("conv", "plain", "deep")) == "conv":
            return nn.Sequential(choose.op("kernel", CONVS))
        widths = [choose.value(f"width{i}", (4, 8)) for i in range(choose.value("depth", (2, 1)))]
        if widths[0] == 4:
            choose.value("more", (1, 2))
        return nn.Sequential()

    space = Space("branches", build)
    assert [d.name for d in space.decisions] == ["kind", "depth", "width0", "kernel", "width1", "more"]
    assert isinstance(space.network((0, 0, 0, 1, 0, 0))[0], nn.Conv2d)
    assert space.asked((0, 1, 1, 1, 1, 1)) == {"kind": "conv", "kernel": "three"}
    drawn = {space.sample(np.random.default_rng(seed)) for seed in range(300)}
    # Of the convolution 2, of each other kind 3 of depth 1 (one without `more`), and 6 of depth 2.
    assert drawn == set(space.enumerate()) and len(drawn) == 2 + 2 * (3 + 6)


def test_decisions_inside_of_candidates_are_asked_after_any_value_too():
    built = []

    def inner(choose):
        built.append(None)
        return choose.op("deep" if choose.value("kind", ("deep", "flat")) == "deep" else "shallow", CONVS)

    def build(choose):
        options = {"inner": lambda: inner(choose), "skip": nn.Identity}
        return nn.Sequential(*(choose.op("outer", options) for _ in range(5)))

    space = Space("inside", build)
    assert [d.name for d in space.decisions] == ["outer", "kind", "shallow", "deep"]
    assert len(built) == 2, "once in each of two runs, though it is asked five times"


def test_a_decision_that_only_two_values_together_lead_to():
    def build(choose):
        if (choose.value("a", (0, 1)), choose.value("b", (0, 1))) == (0, 0):
            return nn.Sequential(choose.op("kernel", CONVS))
        return nn.Sequential()

    space = Space("hidden", build)
    assert [d.name for d in space.decisions] == ["a", "b"]
    message = r"'kernel' is only asked after some choices together.* put the options that lead to it last"
    with pytest.raises(SpaceError, match=message):
        space.network((0, 0))
    rng = np.random.default_rng(0)
    with pytest.raises(SpaceError, match=message):
        [space.sample(rng) for _ in range(20)]


def test_values_under_which_a_build_fails_list_nothing():
    def build(choose):
        depth = choose.value("depth", (1, 2, 3))
        if depth < 2:
            choose.value("never", (1, 2))
            raise ValueError("project gives no depth of 1")
        return nn.Sequential(choose.op("kernel", CONVS))

    space = Space(
        "picky", build, lambda decisions, scores: (max(1, int(scores[0].argmax())), int(scores[1].argmax()))
    )
    assert [d.name for d in space.decisions] == ["depth", "kernel"]
    assert set(space.enumerate()) == {(1, 0), (2, 0), (1, 1), (2, 1)}


def test_a_space_of_many_values_is_listed_in_bounded_time():
    builds = []

    def build(choose):
        builds.append(None)
        for i in range(1000):
            choose.value(f"d{i}", (1, 2, 3))
        return nn.Sequential()

    assert len(Space("many", build).decisions) == 1000
    assert len(builds) == 1 + MAX_RUNS
    assert len(Space("known", build, conditional=False).decisions) == 1000
    assert len(builds) == 2 + MAX_RUNS


def test_options_that_depend_on_an_earlier_choice():
    def build(choose):
        wide = choose.value("wide", (False, True))
        return choose.op("x", CONVS if wide else {"other": nn.Identity})

    with pytest.raises(SpaceError, match=r"decision 'x' offered \('other',\) this time, but 'one' was among"):
        Space("moody", build).network((0, 0))


def test_recursion_without_end():
    def build(choose):
        return nn.Sequential(build(choose))

    with pytest.raises(SpaceError, match="build recursed without end; give it a depth limit"):
        listed(build)


def test_questions_without_end():
    def build(choose):
        for i in itertools.count():
            choose.op(f"d{i}", {"id": nn.Identity})

    with pytest.raises(SpaceError, match="asked more than 10000 decisions, the last one 'd10000'"):
        listed(build)


def test_a_candidate_that_asks_for_itself():
    def build(choose):
        def again():
            return choose.op("x", {"id": nn.Identity, "again": again})

        return again()

    space = Space("loop", build)
    assert [d.name for d in space.decisions] == ["x"]
    with pytest.raises(SpaceError, match="recursed without end"):
        space.network((1,))


def test_project_may_return_numpy_integers():
    space = flat(3, 3, project=lambda decisions, scores: np.array([row.argmax() for row in scores]))
    genotype = space.sample(np.random.default_rng(0))
    assert type(genotype) is tuple and {type(i) for i in genotype} == {int}


@pytest.mark.parametrize(
    ("project", "message"),
    [
        (lambda decisions, scores: (0,), r"project returned \(0,\), wanted one option index for each of 2"),
        (lambda decisions, scores: (0, 3), r"project returned \(0, 3\), wanted one option index"),
        (lambda decisions, scores: (0, -1), r"project returned \(0, -1\), wanted"),
        (lambda decisions, scores: None, "project failed: TypeError"),
        (lambda decisions, scores: scores[5], r"project failed: IndexError.*test_space.py, line \d+"),
    ],
)
def test_a_project_that_breaks_its_promise(project, message):
    with pytest.raises(SpaceError, match=message):
        flat(3, 3, project=project).sample(np.random.default_rng(0))


def test_a_supernet_of_values_is_refused_with_their_names():
    with pytest.raises(SpaceError, match=r"space 'deep' has no supernet: it asks for values, .*depth"):
        SPACES["deep"].supernet(None)
