"""Base of the package's `evaluate.Metric` modules."""

import tempfile

import datasets
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

# float64 for classes too: an integer feature would cut 0.5 to 0 silently, while scikit-learn refuses it.
INDEX = datasets.Value("float64")
ROW = datasets.List(datasets.Value("float64"))


class InMemoryMetric(evaluate.Metric):  # type: ignore[misc]
    """An `evaluate.Metric` that keeps its inputs in memory and writes no file."""

    def __init__(self) -> None:
        # evaluate makes its cache folder even for a metric that never writes there.
        with tempfile.TemporaryDirectory() as folder:
            super().__init__(keep_in_memory=True, cache_dir=folder)


def metric_info(
    description: str, *, inputs_description: str, feature: datasets.Value | datasets.List
) -> evaluate.MetricInfo:
    """Return the description of a metric of scikit-learn.

    Args:
        description: What it measures.
        inputs_description: Its inputs and outputs.
        feature: Type of a prediction, and of a reference.
    """
    return evaluate.MetricInfo(
        description=description,
        citation=SCIKIT_LEARN_CITATION,
        inputs_description=inputs_description,
        features=datasets.Features({"predictions": feature, "references": feature}),
    )
