"""Order of an epoch in which each class has the same number of windows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def balanced_order(classes: Sequence[int], generator: np.random.Generator) -> NDArray[np.intp]:
    """Return items in a random order, as many as there are, with each class equally often, up to one.

    Items of a frequent class take turns from epoch to epoch at random; those of a rare one are repeated, each
    equally often, up to one.

    Args:
        classes: Class of each item, from 0, each at least once.
        generator: Generator of the epoch.
    """
    of_items = np.asarray(classes)
    members = [np.flatnonzero(of_items == number) for number in np.unique(of_items)]
    quotas = np.full(len(members), len(of_items) // len(members))
    quotas[generator.permutation(len(members))[: len(of_items) % len(members)]] += 1
    drawn = [
        np.resize(generator.permutation(own), quota)
        for own, quota in zip(members, quotas, strict=True)
    ]
    return generator.permutation(np.concatenate(drawn))
