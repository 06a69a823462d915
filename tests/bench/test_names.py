"""Rows of both sets of benchmarks can stand in one file."""

from bench import cpu, gpu


def test_no_benchmark_on_a_cpu_has_the_name_of_one_on_a_gpu():
    """A run replaces the rows of what it runs, by name."""
    assert not set(cpu.BENCHMARKS) & set(gpu.BENCHMARKS)
