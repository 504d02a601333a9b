"""One table for a backbone: `rows` say what is measured, `run` measures it, `table` shows it."""

from m2v_finetune.benchmarking.run import BenchmarkSettings, run_benchmark

__all__ = ["BenchmarkSettings", "run_benchmark"]
