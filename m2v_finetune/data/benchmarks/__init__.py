"""Public data sets: one module each, and one function that prepares any of them.

To add one, write a module with a ``BENCHMARK`` and name it here.
"""

from m2v_finetune.data.benchmarks import magnatagatune, mtg_jamendo
from m2v_finetune.data.benchmarks.prepare import Benchmark, PreparedManifest, prepare_benchmark

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.info.name: benchmark for benchmark in (magnatagatune.BENCHMARK, mtg_jamendo.BENCHMARK)
}

__all__ = ["BENCHMARKS", "Benchmark", "PreparedManifest", "prepare_benchmark"]
