"""Base of the package's `evaluate.Metric` modules."""

import tempfile

import evaluate

SCIKIT_LEARN_CITATION = """\
@article{scikit-learn,
  title={Scikit-learn: Machine Learning in {P}ython},
  author={Pedregosa, F. and Varoquaux, G. and Gramfort, A. and Michel, V. and others},
  journal={Journal of Machine Learning Research},
  volume={12},
  pages={2825--2830},
  year={2011}
}"""


class InMemoryMetric(evaluate.Metric):  # type: ignore[misc]
    """An `evaluate.Metric` that keeps its inputs in memory and writes no file."""

    def __init__(self) -> None:
        # evaluate makes its cache folder even for a metric that never writes there.
        with tempfile.TemporaryDirectory() as folder:
            super().__init__(keep_in_memory=True, cache_dir=folder)
