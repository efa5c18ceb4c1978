"""What a run of a config will need: parameters, memory by phase, seconds a step. Does not depend on any task.

Memory is not a formula: the step's own code runs on tensors that have shapes and no storage (PyTorch's fake tensors), and the
bytes that would be alive are counted. Every prompt is taken to be as long as the longest, and every completion to have
``max_new_tokens``. Real ones are shorter and mostly need less (a little more if shorter trees fill a micro-batch better).
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
from minigrpo.policy.fast.stacked import adapters_held
from minigrpo.policy.generation.beams import Beams
from minigrpo.policy.generation.growing_tree import GrowingTree
from minigrpo.policy.generation.search import Draws
from minigrpo.policy.logprobs import logprobs_at
from minigrpo.policy.lora import adapter_parameters, add_lora, freeze_reference
from minigrpo.policy.model import CausalLM
from minigrpo.policy.roots import KeptRoots, with_roots
from minigrpo.policy.tokenizer import Stopping
from minigrpo.policy.tree import Prompts, root_of

MOMENTS = 2                     # that AdamW keeps of a parameter, in float32


class Alive(TorchDispatchMode):
    """Counts the bytes of all live storages (``now``, ``peak``), and the ``calls`` of operators that write anything; a view
    costs almost nothing."""

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
    """``kept``: bytes of weights, adapters, optimiser state and the start policy's root. ``work``: bytes that the phase needs
    besides at its peak: caches, activations, gradients. ``calls``: operators called; for a generation, those of one decoded
    token."""

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
        """Bytes at the peak, without what the program has in memory before a model is loaded."""
        return max(phase.peak for phase in self.phases.values())


@dataclass(frozen=True)
class Load:
    """The longest inputs of a run in tokens: its longest prompt, and the longest prompt and solution of the warm-up. ``root``:
    what all prompts begin with."""

    prompt: int
    example: tuple[int, int] = (0, 0)
    root: int = 0


def make_plan(cfg: config.Config, architecture: Architecture, load: Load, *, rank: int, targets: tuple[str, ...],
              dtype: torch.dtype, keeps_search: bool = False) -> Plan:
    """The plan of a config for a model of ``architecture`` in ``dtype``. ``keeps_search``: a generation's buffers are kept for
    the next one, as on CUDA unless ``model.checkpointing`` frees them."""
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
        Q, K, C, start_roots = cfg.grpo.questions, generation.completions, generation.max_new_tokens, KeptRoots()
        with torch.no_grad():
            start_roots.read(model, _prompts(Q, load.prompt, load.root).root)           # alive from here on, as in a run
        phases["generate"], held = _generate(model, alive, adapters, Q, load, K, C, generation.method)
        phases["evaluate"], _ = _generate(model, alive, adapters, evaluation.batch, load, 1, C, "greedy")
        model.checkpointing = cfg.model.checkpointing
        parts = pack(_ids(Q, load.prompt, load.root), [C] * Q, K, cfg.grpo.micro_batch_tokens)
        update = _update(model, alive, adapters, parts, load.prompt, load.root, K, C)
        phases["update"] = replace(update, work=update.work + held) if keeps_search else update
    return Plan(total - adapters, adapters, phases, len(parts[0][1]))


# -------------------------------------------------------------------------------------------------------------- phases
def _build(architecture: Architecture, dtype: torch.dtype) -> CausalLM:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return CausalLM(architecture).requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def _generate(model: CausalLM, alive: Alive, trained: int, Q: int, load: Load, K: int, C: int,
              method: str) -> tuple[Phase, int]:
    """The prefill and the last token, when all slots of the cache are in use; and the bytes that a kept search holds. The
    optimiser's state exists from the second step on."""
    kept = alive.peak = alive.now
    tables = (torch.zeros(1, model.architecture.vocabulary, dtype=dtype) for dtype in (torch.long, torch.bool))
    with torch.no_grad(), adapters_held(model):
        prompts = _prompts(Q, load.prompt, load.root)
        tree = GrowingTree(model, Q, load.prompt, K, C, len(prompts.root))
        search = (Beams(tree, model, C, Stopping(*tables), length_penalty=1.0, early_stopping=False) if method == "beam" else
                  Draws(tree, model, C, Stopping(*tables), temperature=float(method == "sample")))
        tree.load(prompts, model.read(prompts.root))
        search.begin(model)
        tree.reach(C - 1)
        calls = alive.calls
        search.step(model)
        held = alive.now - kept
    return Phase(kept + MOMENTS * 4 * trained, alive.peak - kept, alive.calls - calls), held


def _update(model: CausalLM, alive: Alive, trained: int, parts: list[tuple[int, list[int]]], P: int, L: int, K: int,
            C: int) -> Phase:
    """Micro-batches, forward and backward, the first being the largest. Two are enough: the gradients that the first leaves
    are alive during the second."""
    before, Q, passes = alive.now, len(parts[0][1]), min(2, len(parts))
    alive.peak, calls = before, alive.calls
    group, branch, depth = (axis.flatten() for axis in torch.meshgrid(torch.arange(Q), torch.arange(K), torch.arange(C),
                                                                      indexing="ij"))
    ids_QKC = torch.zeros(Q, K, C, dtype=torch.long)
    for root, prompts in with_roots([(_prompts(Q, P, L),) * 2] * passes, model):
        logp_T = logprobs_at((group, branch, depth), model, prompts, ids_QKC, torch.ones_like(ids_QKC, dtype=torch.bool),
                             temperature=1.0, chunk=512, root=root)
        logp_T.sum().backward()
    model.zero_grad(set_to_none=True)
    return Phase(before + MOMENTS * 4 * trained, alive.peak - before, (alive.calls - calls) // passes)


def _warm_up(model: CausalLM, alive: Alive, cfg: config.Config, load: Load) -> Phase:
    """Its steps, and the evaluations for ``stop_at``."""
    P, C = load.example
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    parts = pack(_ids(cfg.warmup.batch, P, load.root), [C] * cfg.warmup.batch, 1, cfg.grpo.micro_batch_tokens)
    step = _update(model, alive, trained, parts, P, load.root, 1, C)
    if not cfg.warmup.stop_at:
        return step
    look, _ = _generate(model, alive, trained, cfg.evaluation.batch, load, 1, cfg.generation.max_new_tokens, "greedy")
    return Phase(step.kept, max(step.work, look.work), step.calls)


def _ids(Q: int, P: int, L: int) -> list[list[int]]:
    """Prompts that share L tokens."""
    return [[0] * L + [q + 1] * (P - L) for q in range(Q)]


def _prompts(Q: int, P: int, L: int) -> Prompts:
    return Prompts(torch.zeros(Q, P, dtype=torch.long), torch.full((Q,), P), (0,) * root_of(_ids(Q, P, L)))


# ------------------------------------------------------------------------------------------------------------- seconds
@dataclass(frozen=True)
class Rates:
    """A device's speed: floating-point operations a second of large matrix products, bytes a second read and written; and the
    seconds that a tiny operator takes: called one by one, and within a replayed decoding step."""

    flops: float
    bytes: float
    call: float
    replayed: float


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measured in about a second, on this device as it is now."""
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
    replay(thousand, None)                          # from here on it is a recorded graph, on a device that has them
    return Rates(2 * size**3 / seconds(lambda: matrix @ matrix), 8 * len(much) / seconds(lambda: much + 1.0),
                 seconds(thousand) / 1000, seconds(lambda: replay(thousand, None)) / 1000)


def step_seconds(plan: Plan, rates: Rates, cfg: config.Config, architecture: Architecture, load: Load) -> dict[str, float]:
    """Seconds of one step's phases if every candidate has ``max_new_tokens`` tokens: the longest of arithmetic (without
    attention's), bytes of weights and cache, and operator calls. Forward takes two operations a weight and token, backward two
    more, since frozen weights get no gradient."""
    Q, K, C = cfg.grpo.questions, cfg.generation.completions, cfg.generation.max_new_tokens
    head = architecture.vocabulary * architecture.width
    body = plan.parameters + plan.adapters - head * (1 if architecture.tied else 2)
    decode, parts = plan.phases["generate"], -(-Q // plan.together)
    trees, written = load.root + Q * (load.prompt - load.root + K * C), Q * K * C
    token = max(2 * (body + head) * Q * K / rates.flops, decode.peak / rates.bytes, decode.calls * rates.replayed)
    calls, updates = plan.phases["update"].calls * rates.call * parts, cfg.grpo.updates_per_rollout
    scoring = max(2 * (body * trees + head * written) / rates.flops, calls / 4)
    return {"generate": 2 * body * (load.root + Q * (load.prompt - load.root)) / rates.flops + C * token,
            "reference": scoring * (1 if updates == 1 else 2),                      # the old policy is scored too
            "update": updates * max(4 * (body * trees + head * written) / rates.flops, calls)}
