"""Benchmark of a backbone: `rows` has tasks and data sets, `run` the protocol, `table` the output."""

from m2v_finetune.benchmarking.run import BenchmarkSettings, run_benchmark

__all__ = ["BenchmarkSettings", "run_benchmark"]
