"""Published tables of trained architectures: whole searches replayed in seconds, without training."""

from nas.evaluate.benchmarks.benchmark import BENCHMARKS, Benchmark, Tabular, load_benchmark

__all__ = ["BENCHMARKS", "Benchmark", "Tabular", "load_benchmark"]
