"""Moving average of weights, against its formula."""

import numpy as np
import torch

from m2v_finetune.training.moving_average import MovingAverage


def test_average_is_the_formula_and_swaps_back():
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average = MovingAverage(model, 0.9)
    expected = model.weight.detach().double().numpy().copy()
    for number in range(200):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        average.update(number)
        decay = min(0.9, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * model.weight.detach().double().numpy()
    assert set(average.values) == {"weight"}
    np.testing.assert_allclose(average.values["weight"], expected, rtol=1e-4, atol=1e-5)
    trained, averaged = model.weight.detach().clone(), average.values["weight"].clone()
    with average.applied():
        assert torch.equal(model.weight, averaged)
    assert torch.equal(model.weight, trained)
    assert torch.equal(average.values["weight"], averaged)
