"""A small multi-layer perceptron on the residual of a plain model, fitted with torch and evaluated with numpy."""

import itertools

import numpy as np

from hwcost.predictors.base import State, Values, take
from hwcost.predictors.residual import ResidualPredictor

_WIDTHS = (32, 16)
_STEPS = 250
_RATE, _DECAY = 1e-2, 0.3


class MlpPredictor(ResidualPredictor):
    """Two hidden layers of ReLU on standardised inputs; float64 throughout, full batches, AdamW with a cosine rate. The
    last layer starts at zero, that is, at the plain model."""

    name = "mlp"
    min_rows = 100  # where fewer are, trees and plain models were better, and its fits take longest
    layers: tuple[tuple[Values, Values], ...]
    centre: Values
    scale: Values

    def learn(self, inputs: Values, residual: Values, generator: np.random.Generator) -> None:
        import torch

        self.centre = inputs.mean(axis=0)
        self.scale = np.maximum(inputs.std(axis=0), 0.05)
        sizes = (inputs.shape[1], *_WIDTHS, 1)
        self.layers = tuple(
            (generator.normal(0.0, (2.0 / fan_in) ** 0.5, (fan_in, fan_out)), np.zeros(fan_out))
            for fan_in, fan_out in itertools.pairwise(sizes)
        )
        self.layers = (*self.layers[:-1], (np.zeros((sizes[-2], 1)), np.zeros(1)))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            parameters = [torch.tensor(array, requires_grad=True) for layer in self.layers for array in layer]
            x = torch.tensor((inputs - self.centre) / self.scale)
            y = torch.tensor(residual)[:, None]
            optimiser = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=_DECAY)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
            for _ in range(_STEPS):
                hidden = x
                for index in range(0, len(parameters) - 2, 2):
                    hidden = torch.relu(torch.addmm(parameters[index + 1], hidden, parameters[index]))
                predicted = torch.addmm(parameters[-1], hidden, parameters[-2])
                loss = torch.nn.functional.smooth_l1_loss(predicted, y, beta=0.1)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
            arrays = [parameter.detach().numpy().copy() for parameter in parameters]
        finally:
            torch.set_num_threads(threads)
        self.layers = tuple(zip(arrays[::2], arrays[1::2], strict=True))

    def correction(self, inputs: Values) -> Values:
        hidden = np.clip((inputs - self.centre) / self.scale, -6.0, 6.0)
        for weight, bias in self.layers[:-1]:
            hidden = np.maximum(hidden @ weight + bias, 0.0)
        weight, bias = self.layers[-1]
        result: Values = (hidden @ weight + bias)[:, 0]
        return result

    def learned_state(self) -> State:
        arrays: State = {"centre": self.centre, "scale": self.scale}
        for index, (weight, bias) in enumerate(self.layers):
            arrays |= {f"weight{index}": weight, f"bias{index}": bias}
        return arrays

    def restore(self, state: State) -> None:
        self.centre = take(state, "centre", None)
        sizes = (len(self.centre), *_WIDTHS, 1)
        self.scale = take(state, "scale", len(self.centre))
        self.layers = tuple(
            (take(state, f"weight{index}", fan_in, fan_out), take(state, f"bias{index}", fan_out))
            for index, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes))
        )
