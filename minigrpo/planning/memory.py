"""What a config will need, before anything is computed: parameters, memory by phase, seconds. Knows no SQL.

Memory is not a formula: the step's own code runs on tensors that have shapes and no storage (PyTorch's fake tensors), and
the bytes that would be alive are counted. Every prompt is taken to be as long as the longest and every completion to have
``max_new_tokens``: real ones are shorter and mostly take less (where shorter trees fill a micro-batch better, a little more).
"""

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minigrpo import config
from minigrpo.batch import pack
from minigrpo.common.device import settle
from minigrpo.policy.architecture import Architecture
from minigrpo.policy.fast.replay import Replay
from minigrpo.policy.logprobs import logprobs_at
from minigrpo.policy.lora import adapter_parameters, adapters_held, add_lora, freeze_reference
from minigrpo.policy.model import CausalLM
from minigrpo.policy.search import Beams, Draws, GrowingTree
from minigrpo.policy.stopping import Stopping
from minigrpo.policy.tree import Prompts

STATE = 2                       # AdamW keeps two moments a parameter, float32


class Alive(TorchDispatchMode):
    """Counts the bytes of all storages that are alive (``now``, ``peak``), and the ``calls`` of operators that write anything:
    a view costs next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.calls = 0
        self.known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, function: OpOverload, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = function(*args, **(kwargs or {}))
        storages = [tensor.untyped_storage() for tensor in tree_leaves(out) if isinstance(tensor, Tensor)]
        fresh = [storage for storage in storages if storage not in self.known]
        for storage in fresh:
            self.known.add(storage)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.now)
        self.calls += bool(fresh) or function._schema.is_mutable
        return out

    def _free(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class Phase:
    """``kept``: bytes of weights, adapters and optimiser state; ``work``: what the phase needs besides at its height: caches,
    activations, gradients; ``calls``: operators called, for a generation those of one decoded token."""

    kept: int
    work: int
    calls: int

    @property
    def peak(self) -> int:
        return self.kept + self.work


@dataclass(frozen=True)
class Plan:
    parameters: int                     # of the base, a tied head counted once
    adapters: int
    phases: dict[str, Phase]            # "warm-up" (where there is one), "generate", "evaluate", "update"
    together: int                       # questions in one forward and backward pass

    @property
    def peak(self) -> int:
        """Bytes, without what the program has in memory before a model is loaded."""
        return max(phase.peak for phase in self.phases.values())


@dataclass(frozen=True)
class Load:
    """What a run puts through the model at most: tokens of the longest prompt, and of prompt and SQL of the longest gold."""

    prompt: int
    example: tuple[int, int] = (0, 0)


def make_plan(cfg: config.Config, architecture: Architecture, load: Load, *, rank: int, targets: tuple[str, ...],
              dtype: torch.dtype, keeps_search: bool = False) -> Plan:
    """The plan of a config for a model of ``architecture`` in ``dtype``. ``keeps_search``: the buffers of a generation stay
    for the next one, as they do on CUDA unless ``model.checkpointing`` frees them."""
    phases, fake = {}, FakeTensorMode()
    if cfg.warmup.source and cfg.warmup.method == "full":
        with fake, Alive() as alive:
            model = _build(architecture, torch.float32).requires_grad_(True)
            phases["warm-up"] = _warm_up(model, alive, cfg, load)
            del model
    with fake, Alive() as alive:
        model = _build(architecture, dtype)
        add_lora(model, rank=rank, alpha=1.0, targets=targets, generator=torch.Generator())
        with adapters_held(model):                              # their weights are laid together here
            pass
        adapters = sum(parameter.numel() for parameter in adapter_parameters(model).values())
        total = sum(parameter.numel() for parameter in model.parameters())
        generation, evaluation = cfg.generation, cfg.evaluation
        if cfg.warmup.source and cfg.warmup.method == "lora":
            phases["warm-up"] = _warm_up(model, alive, cfg, load)
        if cfg.model.adapter or "warm-up" in phases and cfg.warmup.method == "lora":
            freeze_reference(model)
        Q, K, C = cfg.grpo.questions, generation.completions, generation.max_new_tokens
        phases["generate"], held = _generate(model, alive, adapters, Q, load.prompt, K, C, generation.method)
        phases["evaluate"], _ = _generate(model, alive, adapters, evaluation.batch, load.prompt, 1, C, "greedy")
        model.checkpointing = cfg.model.checkpointing
        parts = pack([(load.prompt, C)] * Q, K, cfg.grpo.micro_batch_tokens)
        update = _update(model, alive, adapters, parts, load.prompt, K, C)
        phases["update"] = replace(update, work=update.work + held) if keeps_search else update
    return Plan(total - adapters, adapters, phases, len(parts[0]))


# -------------------------------------------------------------------------------------------------------------- phases
def _build(architecture: Architecture, dtype: torch.dtype) -> CausalLM:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return CausalLM(architecture).requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def _generate(model: CausalLM, alive: Alive, trained: int, Q: int, P: int, K: int, C: int,
              method: str) -> tuple[Phase, int]:
    """Prompts, and the last token: by then all slots of the cache are in use; and the bytes that a kept search holds. The
    optimiser's state lies beside it from the second step on."""
    kept = alive.peak = alive.now
    tables = (torch.zeros(1, model.architecture.vocabulary, dtype=dtype) for dtype in (torch.long, torch.bool))
    with torch.no_grad(), adapters_held(model):
        tree = GrowingTree(model, Q, P, K, C)
        search = (Beams(tree, C, Stopping(*tables), length_penalty=1.0, early_stopping=False) if method == "beam" else
                  Draws(tree, C, Stopping(*tables), temperature=float(method == "sample"), top_k=0, top_p=1.0))
        tree.load(_prompts(Q, P))
        search.begin()
        tree.reach(C - 1)
        calls = alive.calls
        search.step()
        held = alive.now - kept
    return Phase(kept + STATE * 4 * trained, alive.peak - kept, alive.calls - calls), held


def _update(model: CausalLM, alive: Alive, trained: int, parts: list[list[int]], P: int, K: int, C: int) -> Phase:
    """Micro-batches, forward and backward, the first being the largest. Two show it all: what the first leaves, its gradients,
    lies beside the activations of the second."""
    before, Q, passes = alive.now, len(parts[0]), min(2, len(parts))
    alive.peak, calls = before, alive.calls
    group, branch, depth = (axis.flatten() for axis in torch.meshgrid(torch.arange(Q), torch.arange(K), torch.arange(C),
                                                                      indexing="ij"))
    ids_QKC = torch.zeros(Q, K, C, dtype=torch.long)
    for _ in range(passes):
        logp_T = logprobs_at((group, branch, depth), model, _prompts(Q, P), ids_QKC,
                             torch.ones_like(ids_QKC, dtype=torch.bool), temperature=1.0, chunk=512)
        logp_T.sum().backward()
    model.zero_grad(set_to_none=True)
    return Phase(before + STATE * 4 * trained, alive.peak - before, (alive.calls - calls) // passes)


def _warm_up(model: CausalLM, alive: Alive, cfg: config.Config, load: Load) -> Phase:
    """Its steps, and the looks at the score that ``stop_at`` waits for."""
    P, C = load.example
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    step = _update(model, alive, trained, pack([(P, C)] * cfg.warmup.batch, 1, cfg.grpo.micro_batch_tokens), P, 1, C)
    if not cfg.warmup.stop_at:
        return step
    look, _ = _generate(model, alive, trained, cfg.evaluation.batch, load.prompt, 1, cfg.generation.max_new_tokens, "greedy")
    return Phase(step.kept, max(step.work, look.work), step.calls)


def _prompts(Q: int, P: int) -> Prompts:
    return Prompts(torch.zeros(Q, P, dtype=torch.long), torch.full((Q,), P))


# ------------------------------------------------------------------------------------------------------------- seconds
@dataclass(frozen=True)
class Rates:
    """What a device does in a second: floating-point operations of large matrix products, bytes read and written; and the
    seconds that one operator takes, however small: when it is called, and within a step of decoding, which is replayed."""

    flops: float
    bytes: float
    call: float
    replayed: float


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """In about a second, on this device as it is now."""
    def seconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            settle(device)
            start = time.perf_counter()
            work()
            settle(device)
            times.append(time.perf_counter() - start)
        return sorted(times)[2]

    size = 1024 if device.type == "cpu" else 8192
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    much, little = torch.randn(2**26, device=device), torch.randn(8, device=device)

    def thousand() -> None:
        for _ in range(1000):
            little.add_(1.0)

    replay = Replay(device)
    replay(thousand, None)
    replay(thousand, None)                          # from here on it is recorded, where there is anything that records
    return Rates(2 * size**3 / seconds(lambda: matrix @ matrix), 8 * len(much) / seconds(lambda: much + 1.0),
                 seconds(thousand) / 1000, seconds(lambda: replay(thousand, None)) / 1000)


def step_seconds(plan: Plan, rates: Rates, cfg: config.Config, architecture: Architecture,
                 prompt: int) -> dict[str, float]:
    """Seconds of one step's phases where every candidate is ``max_new_tokens`` long: arithmetic (without attention's), bytes
    of weights and cache, and calls, whichever takes longest. Forward is two operations a weight and token, and backward two
    more: what is frozen gets no gradient."""
    Q, K, C = cfg.grpo.questions, cfg.generation.completions, cfg.generation.max_new_tokens
    head = architecture.vocabulary * architecture.width
    body = plan.parameters + plan.adapters - head * (1 if architecture.tied else 2)
    trunk, trees, written = Q * prompt, Q * (prompt + K * C), Q * K * C
    decode, parts = plan.phases["generate"], -(-Q // plan.together)
    token = max(2 * (body + head) * Q * K / rates.flops, decode.peak / rates.bytes, decode.calls * rates.replayed)
    calls, updates = plan.phases["update"].calls * rates.call * parts, cfg.grpo.updates_per_rollout
    scoring = max(2 * (body * trees + head * written) / rates.flops, calls / 4)
    return {"generate": 2 * body * trunk / rates.flops + C * token,
            "reference": scoring * (1 if updates == 1 else 2),                      # the old policy is scored too
            "update": updates * max(4 * (body * trees + head * written) / rates.flops, calls)}
