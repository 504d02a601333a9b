"""Public data sets: one module each, and one function that prepares any of them.

To add one, write a module with a ``BENCHMARK`` and name it here.
"""

from m2v_finetune.data.benchmarks import (
    ballroom,
    billboard,
    emomusic,
    giantsteps,
    gtzan,
    gtzan_rhythm,
    hainsworth,
    isophonics,
    maestro,
    magnatagatune,
    mtg_jamendo,
    musdb18,
    nsynth,
    smc,
    vocalset,
)
from m2v_finetune.data.benchmarks.benchmark import Benchmark
from m2v_finetune.data.benchmarks.prepare import PreparedManifest, prepare_benchmark

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.info.name: benchmark
    for benchmark in (
        magnatagatune.BENCHMARK,
        mtg_jamendo.BENCHMARK,
        gtzan.BENCHMARK,
        giantsteps.BENCHMARK,
        emomusic.BENCHMARK,
        nsynth.BENCHMARK,
        vocalset.BENCHMARK,
        gtzan_rhythm.BENCHMARK,
        ballroom.BENCHMARK,
        hainsworth.BENCHMARK,
        smc.BENCHMARK,
        isophonics.BENCHMARK,
        billboard.BENCHMARK,
        maestro.BENCHMARK,
        musdb18.BENCHMARK,
    )
}

__all__ = ["BENCHMARKS", "Benchmark", "PreparedManifest", "prepare_benchmark"]
