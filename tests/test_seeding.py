"""Named streams: equal on every machine, independent of each other, and nothing leaks out of a block."""

import torch

from nas.seeding import derive, isolated


def test_a_seed_is_a_fixed_function_of_its_path():
    assert derive(0, 3, "train") == 3185554562237481655
    assert 0 <= derive(2**40, "x") < 2**63


def test_paths_that_look_alike_are_different_streams():
    paths = [(), (1,), ("1",), (1, 2), (12,), (1, "2"), ("12",), ("1, 2",), ("train", 1), (1, "train")]
    seeds = [derive(seed, *path) for seed in (0, 1) for path in paths]
    assert len(set(seeds)) == len(seeds)


def test_isolated_depends_on_its_path_alone_and_leaves_no_trace():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with isolated(0, "block"):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    with isolated(0, "block"):
        assert torch.equal(torch.rand(3), first)
        with isolated(0, "inner"):
            torch.rand(100)
        again = torch.rand(3)
    with isolated(0, "block"):
        torch.rand(3)
        assert torch.equal(torch.rand(3), again)
