"""optimizer_state.py: an optimiser's state goes through a file, and what it computes afterwards is the same to the bit."""

import torch

from minigrpo.policy.files.tensors import load_tensors, save_tensors
from minigrpo.policy.files.weights import load_model
from minigrpo.policy.lora import adapter_parameters
from minigrpo.training.optimizer_state import load_optimizer, optimizer_tensors
from minigrpo.training.warmup import supervised_update
from minigrpo.update import make_optimizer
from tests.test_update import GRPO_1, SPREAD, adapted, make_groups, one_step, snapshot
from tests.training.test_supervised_update import EXAMPLES


def adam(parameters) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters.values(), lr=1e-2, betas=(0.9, 0.98))


def test_an_optimiser_that_is_saved_and_loaded_goes_on_bit_for_bit(sql_model, tmp_path):
    """Two steps, then weights and state through a file into another model and optimiser; two steps more in both."""
    ours, theirs = (load_model(sql_model, dtype=torch.float32, device="cpu").requires_grad_(True) for _ in "ab")
    named, others = dict(ours.named_parameters()), dict(theirs.named_parameters())
    optimizer, other = adam(named), adam(others)

    def steps(model, optimizer):
        for examples in (EXAMPLES[:2], EXAMPLES[2:]):
            supervised_update(model, optimizer, examples, micro_batch_tokens=8192, max_grad_norm=1.0)

    steps(ours, optimizer)
    save_tensors(tmp_path / "o.safetensors", optimizer_tensors(optimizer, named))
    theirs.load_state_dict(ours.state_dict())
    load_optimizer(other, others, load_tensors(tmp_path / "o.safetensors"))
    assert {name: tensor.tolist() for name, tensor in optimizer_tensors(other, others).items()} == \
           {name: tensor.tolist() for name, tensor in optimizer_tensors(optimizer, named).items()}
    # AdamW wants its step counts on the CPU, moments beside their weights.
    for parameter in others.values():
        state = other.state[parameter]
        assert state["step"].device.type == "cpu" and state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
    steps(ours, optimizer)
    at_once = snapshot(ours)
    steps(theirs, other)
    assert all(torch.equal(at_once[name], now) for name, now in snapshot(theirs).items())
    # The control: without the state the same two steps lead elsewhere.
    theirs.load_state_dict(load_model(sql_model, dtype=torch.float32, device="cpu").state_dict())
    steps(theirs, adam(others))
    steps(theirs, adam(others))
    assert not any(torch.equal(at_once[name], now) for name, now in snapshot(theirs).items())


def test_the_state_of_an_optimiser_by_name(sql_model):
    """Nothing before the first step; then three tensors for each half of an adapter. A name that begins another's ("a", "ab")
    takes nothing of it."""
    model = adapted(sql_model)
    named, optimizer = adapter_parameters(model), make_optimizer(model, GRPO_1)
    assert optimizer_tensors(optimizer, named) == {}
    load_optimizer(optimizer, named, {})
    one_step(model, make_groups(SPREAD), optimizer=optimizer)
    assert set(optimizer_tensors(optimizer, named)) == {f"{name}/{key}" for name in named
                                                        for key in ("step", "exp_avg", "exp_avg_sq")}
    pair = {name: torch.nn.Parameter(torch.zeros(2)) for name in ("a", "ab")}
    state = {f"{name}/{key}": torch.full(shape, float(i)) for i, name in enumerate(pair)
             for key, shape in (("step", ()), ("exp_avg", (2,)), ("exp_avg_sq", (2,)))}
    other = adam(pair)
    load_optimizer(other, pair, state)
    for i, parameter in enumerate(pair.values()):
        assert {key: tensor.tolist() for key, tensor in other.state[parameter].items()} == {
            "step": i, "exp_avg": [i, i], "exp_avg_sq": [i, i]}
