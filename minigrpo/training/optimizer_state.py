"""An optimiser's state as named tensors, so that it can lie in a safetensors file."""

from collections.abc import Mapping

import torch
from torch import Tensor


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state by names "<parameter>/exp_avg", ...; a parameter that has not moved yet has none."""
    return {f"{name}/{key}": tensor for name, parameter in parameters.items()
            for key, tensor in optimizer.state.get(parameter, {}).items()}


def load_optimizer(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """The inverse of ``optimizer_tensors``. Moments go to their parameter's device, step counts stay on the CPU."""
    for name, parameter in parameters.items():
        if state := {key.removeprefix(f"{name}/"): tensor.to("cpu" if tensor.ndim == 0 else parameter.device)
                     for key, tensor in tensors.items() if key.startswith(f"{name}/")}:
            optimizer.state[parameter] = state
