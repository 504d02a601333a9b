"""Nearest tracks: milliseconds a query, and recall, of the exact search and of the index.

    python benchmarks/similar.py

Two tables: random vectors, which are the hardest for an index, as all distances are nearly equal; and
vectors around 2,000 centres, as songs of artists are. The exact search and the index have 100,000 of them.
Each query is a vector of the table with noise. The result is in benchmarks/results/similar.json. Times are
those of the CPU, so that other programs on the machine matter less.
"""

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from m2v_finetune.data.feature_tables import CATALOGUE_FILE
from m2v_finetune.similarity import VectorTable
from m2v_finetune.similarity.exact import nearest_exact
from m2v_finetune.similarity.index import nearest_approximate, open_index

RESULT = Path(__file__).parent / "results" / "similar.json"
NUM_VECTORS = 100_000
SIZE, NUM_CENTRES = 128, 2000
SHARD_ROWS = 10_000
NUM_QUERIES, TOP = 100, 10


def vectors_of(kind: str) -> np.ndarray:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(NUM_VECTORS, SIZE)).astype(np.float32)
    if kind == "clusters":
        centres = generator.normal(size=(NUM_CENTRES, SIZE)).astype(np.float32)
        vectors = centres[generator.integers(NUM_CENTRES, size=NUM_VECTORS)] + 0.5 * vectors
    return vectors.astype(np.float16)


def write_table(folder: Path, vectors: np.ndarray) -> VectorTable:
    (folder / CATALOGUE_FILE).write_text("{}")
    for number, start in enumerate(range(0, len(vectors), SHARD_ROWS)):
        rows = vectors[start : start + SHARD_ROWS]
        ids = [f"track-{row}" for row in range(start, start + SHARD_ROWS)]
        columns = {
            "id": ids,
            "path": [f"/music/{one}.mp3" for one in ids],
            "duration": [180.0] * SHARD_ROWS,
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), SIZE),
        }
        parquet.write_table(
            pa.table(columns),
            folder / f"part-{number:05d}.parquet",
            compression="zstd",
            use_dictionary=["id", "path"],  # as `m2v embed` writes it
        )
    return VectorTable.open(folder)


def measure(kind: str) -> dict[str, float]:
    vectors = vectors_of(kind)
    noise = np.random.default_rng(1).normal(scale=0.1, size=(NUM_QUERIES, SIZE))
    queries = (vectors[:NUM_QUERIES] + noise).astype(np.float32)
    return {**measure_exact(vectors, queries), **measure_index(vectors, queries)}


def measure_exact(vectors: np.ndarray, queries: np.ndarray) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        table = write_table(Path(name), vectors)
        nearest_exact(table, queries[:1], TOP)
        singles = []
        for query in queries[:5]:
            start = time.process_time()
            nearest_exact(table, query[None], TOP)
            singles.append(time.process_time() - start)
        start = time.process_time()
        found = nearest_exact(table, queries, TOP)
        together = time.process_time() - start
    return {
        "exact_ms_of_one_query": round(1000 * float(np.median(singles)), 1),
        "exact_ms_of_a_query_of_100": round(1000 * together / NUM_QUERIES, 2),
        "exact_recall": recall(found, answers(vectors, queries)),
    }


def measure_index(vectors: np.ndarray, queries: np.ndarray) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        os.environ["M2V_CACHE"] = f"{name}/cache"
        table = write_table(Path(name), vectors)
        start = time.process_time()
        open_index(table)
        built = time.process_time() - start
        nearest_approximate(table, queries, TOP)
        start = time.process_time()
        found = nearest_approximate(table, queries, TOP)
        searched = time.process_time() - start
    return {
        "index_build_seconds": round(built, 1),
        "index_ms_of_a_query": round(1000 * searched / NUM_QUERIES, 2),
        "index_recall": recall(found, answers(vectors, queries)),
    }


def answers(vectors: np.ndarray, queries: np.ndarray) -> list[np.ndarray]:
    """Return the rows of the nearest vectors of each query, by numpy in float64."""
    units = vectors.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    return [np.argsort(-(units @ query), kind="stable")[:TOP] for query in queries]


def recall(found: list, expected: list[np.ndarray]) -> float:
    """Return the part of the nearest `TOP` that was found, 0 to 1."""
    shared = [
        len(set(one.rows.tolist()) & set(answer.tolist()))
        for one, answer in zip(found, expected, strict=True)
    ]
    return round(sum(shared) / (TOP * len(expected)), 4)


def table(result: dict) -> str:
    """Return the table of docs/similar.md."""
    lines = [
        "| vectors | exact, ms of one query | exact, ms of a query among 100 | recall "
        "| index, ms of a query | recall | index, seconds to build |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, found in result["tables"].items():
        keys = (
            "exact_ms_of_one_query",
            "exact_ms_of_a_query_of_100",
            "exact_recall",
            "index_ms_of_a_query",
            "index_recall",
            "index_build_seconds",
        )
        lines.append(f"| {kind} | " + " | ".join(f"{found[key]:g}" for key in keys) + " |")
    return "\n".join(lines)


def main() -> None:
    result: dict = {
        "vectors": NUM_VECTORS,
        "indexed": NUM_VECTORS,
        "size": SIZE,
        "precision": "float16",
        "top": TOP,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "tables": {},
    }
    for kind in ("random", "clusters"):
        result["tables"][kind] = measure(kind)
        print(kind, result["tables"][kind], flush=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
