"""Rows of all sets of benchmarks can stand in one file."""

from bench import cpu, gpu, gpus


def test_no_two_sets_have_a_benchmark_of_the_same_name():
    """A run replaces the rows of what it runs, by name."""
    names = [*cpu.BENCHMARKS, *gpu.BENCHMARKS, *gpus.BENCHMARKS]
    assert len(names) == len(set(names))
