"""The recorder of CUDA graphs, on what stands in for torch's own: what it does where a capture fails."""

import gc
import warnings

import pytest
import torch

from nas.training import captured
from nas.training.captured import Captured, CudaRecorder


class Card:
    """A GPU's captures as torch does them.

    current: the stream in use. pools: those that memory is kept for. stuck: the
    generators that take a capture to go on. invalid: whether the capture of now is.
    """

    def __init__(self):
        self.current, self.pools, self.stuck = "default", [], set()
        self.handles = self.released = 0
        self.invalid, self.waits = False, []
        card = self

        class Stream:
            device = torch.device("cuda", 0)

            def __init__(self, *_):
                card.own = self

            def wait_stream(self, other):
                card.waits.append(("own", other))

        class Default:
            def wait_stream(self, other):
                card.waits.append(("default", other))

        class On:
            def __init__(self, stream):
                self.stream = stream

            def __enter__(self):
                self.before, card.current = card.current, self.stream

            def __exit__(self, *_):
                card.current = self.before

        class Graph:
            def __init__(self):
                self.generators, self.replays = [], 0

            def register_generator_state(self, generator):
                self.generators.append(generator)

            def replay(self):
                assert not card.stuck.intersection(map(id, self.generators))
                self.replays += 1

        class Capture:
            def __init__(self, graph, *, pool, stream, capture_error_mode):
                self.graph, self.pool, self.on = graph, pool, On(stream)
                assert capture_error_mode == "thread_local"

            def __enter__(self):
                assert self.pool not in card.pools
                self.on.__enter__()
                card.invalid = False
                card.pools.append(self.pool)
                card.stuck.update(map(id, self.graph.generators))

            def __exit__(self, *_):
                if card.invalid:
                    raise RuntimeError("operation failed due to a previous error during capture")
                card.pools.remove(self.pool)
                card.stuck.difference_update(map(id, self.graph.generators))
                self.on.__exit__()

        self.Stream, self.On, self.Graph, self.Capture, self.Default = Stream, On, Graph, Capture, Default

    def handle(self):
        self.handles += 1
        return (0, self.handles)

    def end(self, _, pool):
        if pool not in self.pools:
            raise RuntimeError("not recording to this pool")
        self.pools.remove(pool)

    def release(self, *_):
        self.released += 1


@pytest.fixture
def card(monkeypatch):
    card = Card()
    for name, what in {
        "Stream": card.Stream, "stream": card.On, "CUDAGraph": card.Graph, "graph": card.Capture,
        "graph_pool_handle": card.handle, "current_stream": lambda _: card.Default(),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, what)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", card.end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", card.release, raising=False)
    captured._stream_of.cache_clear()
    yield card
    captured._stream_of.cache_clear()


@pytest.fixture
def recorder(card):
    return CudaRecorder(torch.device("cpu"))


def unsupported(card):
    """A step that waits for the device."""

    def step():
        card.invalid = True
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with DSA")

    return step


def test_a_capture_that_fails_leaves_nothing_of_it(card, recorder):
    generators = [torch.Generator(), torch.Generator()]
    with pytest.raises(RuntimeError, match="previous error during capture"):
        recorder.capture(unsupported(card), generators)
    assert card.current == "default"
    assert (card.pools, card.stuck, card.released) == ([], set(), 1)
    replay = recorder.capture(lambda: None, generators)
    replay()
    assert card.current == "default"


def test_a_capture_that_only_python_ends_is_over(card, recorder):
    def refuse():
        raise RuntimeError("capturable is False")

    with pytest.raises(RuntimeError, match="capturable is False"):
        recorder.capture(refuse, [torch.Generator()])
    assert (card.current, card.pools, card.stuck, card.released) == ("default", [], set(), 0)


def test_the_first_error_is_told(card, recorder):
    total = torch.zeros(())

    def step():
        if card.pools:
            unsupported(card)()
        total.add_(1)

    steps = Captured(step, lambda: [total], recorder)
    steps.run("key", lambda: None)
    with pytest.warns(
        UserWarning, match=r"cannot be captured: operation not permitted when stream is captur"
    ):
        steps.run("key", lambda: None)
    steps.run("key", lambda: None)
    assert total == 3


def test_graphs_share_memory_as_long_as_one_of_them_is_there(card, recorder):
    one = recorder.capture(lambda: None, [])
    first = recorder._pool
    two = recorder.capture(lambda: None, [])
    assert recorder._pool == first
    del one, two
    gc.collect()
    recorder.capture(lambda: None, [])
    assert recorder._pool != first


def test_all_trainings_of_a_process_are_on_one_stream(card, recorder):
    """Libraries keep memory for each."""
    own = card.own
    assert recorder._stream is own
    assert CudaRecorder(torch.device("cpu"))._stream is card.own is own


def test_what_follows_a_step_that_fails_waits_for_it(card, recorder):
    with pytest.raises(ValueError, match="no"), recorder.beside():
        raise ValueError("no")
    assert [who for who, _ in card.waits] == ["own", "default"]


# -- memory ----------------------------------------------------------------------------------------------


class Small:
    """A recorder on a card with memory for a graph or a step, as it is said."""

    def __init__(self, *, for_graph):
        self.for_graph, self.held, self.beside_graph = for_graph, None, False

    def beside(self):
        return torch.no_grad()

    def capture(self, run, generators=()):
        if not self.for_graph:
            raise torch.OutOfMemoryError("CUDA out of memory")
        run()
        self.held = run
        self.beside_graph = True
        return run


@pytest.mark.parametrize("for_graph", [False, True])
def test_where_memory_is_short_a_step_runs_as_it_is(monkeypatch, for_graph):
    total, record, released = torch.zeros(2), Small(for_graph=for_graph), []
    monkeypatch.setattr(captured, "release", lambda: released.append(1))
    calls = []

    def step():
        calls.append(1)
        total.add_(1)
        if record.beside_graph and len(calls) == 4:  # after the first, the captured and the replayed one
            record.beside_graph = False
            raise torch.OutOfMemoryError("CUDA out of memory")

    steps = Captured(step, lambda: [total], record)
    with pytest.warns(UserWarning, match="no memory for it" if for_graph else "CUDA out of memory"):
        for _ in range(4):
            steps.run("key", lambda: None)
    assert total.tolist() == [4.0] * 2
    assert not steps.captures
    assert released


# -- what a replay lacks ---------------------------------------------------------------------------------


class Lacking:
    """A recorder whose replays leave a tensor out."""

    def __init__(self, replay):
        self.replay = replay

    def beside(self):
        return torch.no_grad()

    def capture(self, run, generators=()):
        run()
        return self.replay


@pytest.mark.parametrize("right", [True, False])
def test_memory_of_the_way_that_is_not_taken_is_given_back(monkeypatch, right):
    total, released = torch.zeros(3), []
    monkeypatch.setattr(captured, "give_back", lambda: released.append(total[0].item()))
    steps = Captured(lambda: total.add_(1), lambda: [total], Lacking(lambda: total.add_(1 if right else 9)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(5):
            steps.run("key", lambda: None)
    assert released == [3.0]
    assert len(said) == (not right)


@pytest.mark.parametrize("lacks", [True, False])
def test_a_small_parameter_that_a_replay_leaves_alone_is_missed(lacks):
    weights = [torch.nn.Parameter(torch.zeros(5)) for _ in range(3)]
    alphas, statistics = torch.nn.Parameter(torch.zeros(2)), torch.zeros(4)

    @torch.no_grad()
    def step(alpha=1e-4):
        for weight in weights:
            weight.add_(0.01)
        alphas.add_(alpha)
        statistics.add_(100)

    steps = Captured(
        step, lambda: [*weights, alphas, statistics], Lacking(lambda: step(0.0 if lacks else 1e-4))
    )
    for number in range(3):
        if lacks and number == 2:
            with pytest.warns(UserWarning, match="replay of a parameter differs by 1.0e"):
                steps.run("key", lambda: None)
        else:
            steps.run("key", lambda: None)
    assert steps.captures is not lacks
    torch.testing.assert_close(alphas.detach(), torch.full((2,), 3e-4))


def test_rounding_errors_of_a_parameter_are_none():
    one, two, bias = (torch.nn.Parameter(torch.zeros(5)) for _ in range(3))

    @torch.no_grad()
    def step(noise=1e-9):
        one.add_(0.01)
        two.add_(0.01)
        bias.add_(noise)

    steps = Captured(step, lambda: [one, two, bias], Lacking(lambda: step(-1e-9)))
    for _ in range(3):
        steps.run("key", lambda: None)
    assert steps.captures


def test_a_graph_of_another_key_is_compared_as_the_first_was():
    total = torch.nn.Parameter(torch.zeros(3))
    wrong = [False]

    @torch.no_grad()
    def step():
        total.add_(1)

    @torch.no_grad()
    def replay():
        total.add_(2.0 if wrong[0] else 1.0)

    steps = Captured(step, lambda: [total], Lacking(replay))
    for _ in range(4):
        steps.run("one", lambda: None)
    wrong[0] = True
    steps.run("two", lambda: None)
    steps.run("two", lambda: None)
    with pytest.warns(UserWarning, match="differs by"):
        steps.run("two", lambda: None)
    assert total.tolist() == [7.0] * 3
