"""What one GRPO step costs, phase by phase, here and in the libraries one would otherwise use, on the same work in one run.

    python tests/benchmarks/step.py --device cpu|cuda --model tiny|smollm2|codegemma7b [--peers] [--fuse] [--json FILE]
                                    [--questions N] [--prompts FOLDER --tokenizer FOLDER]

Weights are random and of the named shape; rank-16 adapters sit on all seven projections. Nobody may stop early: every
completion has exactly as many tokens as the table says, and that is asserted. Each library runs in a process of its own, one
after the other, so that its memory is its own. The SQL of a step are real queries of the quickstart's questions, on SQLite.

Prompts are random tokens, which share nothing. --prompts names the folder of TEMPTABQA-C instead: the first training questions
in the template "plain" with three samples a column, in the tokens of --tokenizer, a folder with a tokenizer.json. All of them
show the same schema. Both sides then get the same prompts, and of the peers only TRL is measured.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

WHO = ("minigrpo", "transformers", "peft", "trl")


@dataclass(frozen=True)
class Work:
    """Q questions of P prompt tokens, K completions of C tokens each; ``repeats`` of every measurement."""

    config: dict
    questions: int
    prompt: int
    completions: int
    tokens: int
    micro_batch: int                            # sequences the peers put through at once in the update
    budget: int                                 # our micro_batch_tokens
    repeats: int
    prompts: tuple[tuple[int, ...], ...] = ()   # real ones in place of random ones; the longest has ``prompt`` tokens
    shared: int = 0                             # tokens that all random prompts begin with


LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "hidden_act": "silu",
         "max_position_embeddings": 2048}
TINY = LLAMA | {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2}
SMOLLM2 = LLAMA | {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                   "num_attention_heads": 9, "num_key_value_heads": 3, "rope_theta": 100000.0}
CODEGEMMA = {"model_type": "gemma", "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576,
             "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256,
             "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192, "tie_word_embeddings": True}
WORKS = {("tiny", "cpu"): Work(TINY, 4, 64, 2, 32, 8, 1024, 5),
         ("tiny", "cuda"): Work(TINY, 4, 64, 2, 32, 8, 1024, 5),
         ("smollm2", "cpu"): Work(SMOLLM2, 4, 350, 2, 64, 8, 1024, 3),
         ("smollm2", "cuda"): Work(SMOLLM2, 8, 350, 8, 256, 64, 32768, 3),
         ("codegemma7b", "cpu"): Work(CODEGEMMA, 8, 512, 2, 128, 4, 3072, 1),
         ("codegemma7b", "cuda"): Work(CODEGEMMA, 8, 512, 2, 128, 4, 3072, 3)}
RANK, ALPHA = 16, 32.0


# ---------------------------------------------------------------------------------------------------------- measuring
class Meter:
    """Times work on a device, and prints a row for each measurement."""

    def __init__(self, who: str, device: str, repeats: int) -> None:
        self.who, self.cuda, self.repeats = who, device == "cuda", repeats

    def settle(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    @contextmanager
    def peak(self) -> Iterator[Callable[[], int]]:
        """The highest memory within the block: allocated on the card, or resident in this process."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            yield torch.cuda.max_memory_allocated
        else:
            Path("/proc/self/clear_refs").write_text("5")
            yield lambda: 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    def __call__(self, phase: str, work: Callable[[], object], *, warm: int = 1, **facts: object) -> float:
        """Median seconds of ``work``, after ``warm`` calls that are not counted."""
        for _ in range(warm):
            work()
        seconds = []
        with self.peak() as peak:
            for _ in range(self.repeats):
                self.settle()
                start = time.perf_counter()
                work()
                self.settle()
                seconds.append(time.perf_counter() - start)
            self.row(phase, seconds, peak(), **facts)
        return statistics.median(seconds)

    def row(self, phase: str, seconds: list[float], peak_bytes: int, **facts: object) -> None:
        print(json.dumps({"phase": phase, "who": self.who, "median_s": statistics.median(seconds), "min_s": min(seconds),
                          "max_s": max(seconds), "runs": len(seconds), "peak_bytes": peak_bytes} | facts), flush=True)


# ----------------------------------------------------------------------------------------------------------- minigrpo
def our_model(work: Work, device: torch.device) -> "torch.nn.Module":
    """Random weights of the shape, in what the device computes best, with adapters that say something."""
    from minigrpo.policy.architecture import read_architecture
    from minigrpo.policy.lora import add_lora
    from minigrpo.policy.model import CausalLM
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    with device:
        model = CausalLM(read_architecture(work.config)).requires_grad_(False)
        for parameter in model.parameters():
            torch.nn.init.ones_(parameter) if parameter.ndim == 1 else torch.nn.init.normal_(parameter, std=0.02)
    torch.set_default_dtype(torch.float32)
    add_lora(model, rank=RANK, alpha=ALPHA, generator=torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=1e-3)
    return model


def measure_minigrpo(work: Work, device: str, *, fused: bool, checkpointing: bool) -> None:
    from minigrpo import config
    from minigrpo.batch import make_batch
    from minigrpo.common.clock import Clock
    from minigrpo.common.device import choose_device, set_up_torch, settle
    from minigrpo.policy.fast.fuse import fuse
    from minigrpo.policy.fast.products import linear
    from minigrpo.policy.fast.stacked import stacks
    from minigrpo.policy.generation.growing_tree import GrowingTree
    from minigrpo.policy.generation.search import beam_search, sample
    from minigrpo.policy.roots import KeptRoots
    from minigrpo.policy.tokenizer import Stopping
    from minigrpo.policy.tree import pad_prompts, root_of
    from minigrpo.rollout import Group, Rollout
    from minigrpo.task.contract import Verdict
    from minigrpo.task.sql.data.athletes import load_databases, load_questions
    from minigrpo.task.sql.engines.database import run_all
    from minigrpo.task.sql.engines.sqlite import open_sqlite
    from minigrpo.update import make_optimizer, update

    set_up_torch()
    meter, where = Meter("minigrpo", device, work.repeats), choose_device(device)
    Q, P, K, C = work.questions, work.prompt, work.completions, work.tokens
    model = our_model(work, where)
    model.checkpointing = checkpointing
    if fused:
        fuse(model)

    V, draws = model.architecture.vocabulary, torch.Generator(where).manual_seed(0)
    random_QP = torch.randint(10, V - 10, (Q, P), generator=torch.Generator().manual_seed(1))
    random_QP[:, :work.shared] = random_QP[0, :work.shared]
    prompts = work.prompts or random_QP.tolist()
    read = sum(map(len, prompts))
    never = Stopping(torch.zeros(1, V, dtype=torch.long), torch.zeros(1, V, dtype=torch.bool))
    grpo = config.GRPO(micro_batch_tokens=work.budget, kl_coef=0.04)
    optimizer, clock, start_roots = make_optimizer(model, grpo), Clock(lambda: settle(where)), KeptRoots()

    def prefill(tree: GrowingTree) -> None:
        with torch.inference_mode():
            padded = pad_prompts(prompts, device=where)
            tree.load(padded, model.read(padded.root))
            tree.prefill(model)

    def generate(method: str) -> list:
        settings = dict(completions=K, max_new_tokens=C, stopping=never)
        found = (beam_search(model, prompts, **settings) if method == "beam" else
                 sample(model, prompts, **settings, generator=draws))
        assert [len(completion.ids) for group in found for completion in group] == [C] * (Q * K)
        return found

    facts = {"tokens": Q * K * C, "sequences": Q * K}
    once = meter("prefill", partial(prefill, GrowingTree(model, Q, P, K, C, root_of(prompts))), tokens=read)
    for method in ("beam", "sample"):
        seconds = meter(f"generate ({method})", lambda: generate(method), warm=2, **facts)
        meter.row(f"decode one token ({method})", [(seconds - once) / C], 0)

    weights = [*(stack.weight for stack in stacks(model)), model.head.weight]
    inputs = {weight.shape[1]: torch.randn(Q * K, weight.shape[1], device=where, dtype=weight.dtype) for weight in weights}

    @torch.inference_mode()
    def products() -> None:
        for weight in weights:
            linear(inputs[weight.shape[1]], weight)

    meter("products of one token", products, warm=5)

    with open_sqlite(load_databases()) as database:
        asked = load_questions("train")[:Q]
        queries = [(question.gold_sql, question.database) for question in asked for _ in range(K)]
        meter("SQL", lambda: run_all(database, queries, 4), queries=len(queries))

        def groups() -> list[Group]:
            found = generate("beam")
            results = run_all(database, queries, 4)
            rollouts = [Rollout(completion, "", Verdict(float(i % K), {}, execution.status, "", sql, details=execution))
                        for i, (completion, (sql, _), execution)
                        in enumerate(zip((c for group in found for c in group), queries, results))]
            return [Group(asked[q], tuple(prompts[q]), tuple(rollouts[q * K:(q + 1) * K])) for q in range(Q)]

        made = groups()
        scored = partial(make_batch, model=model, grpo=grpo, temperature=1.0, start_roots=start_roots)
        meter("reference", lambda: scored(made, clock=Clock()), tokens=read + Q * K * C)
        batch = scored(made, clock=Clock())
        meter("update", lambda: update(model, optimizer, batch, grpo, length=C, clock=Clock()), tokens=read + Q * K * C)

        def step() -> None:
            batch = scored(groups(), clock=clock)
            report = update(model, optimizer, batch, grpo, length=C, clock=clock).metrics
            assert report["skipped"] == 0 and report["grad_norm"] > 0

        meter("step", step, **facts)


# -------------------------------------------------------------------------------------------------------------- peers
def their_model(work: Work, device: str) -> torch.nn.Module:
    import transformers
    transformers.utils.logging.set_verbosity_error()
    settings = {name: value for name, value in work.config.items() if name != "model_type"}
    described = transformers.AutoConfig.for_model(work.config["model_type"], **settings, pad_token_id=0, bos_token_id=2,
                                                  eos_token_id=1)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(described)
    torch.set_default_dtype(torch.float32)
    return model.eval()


def lora_config() -> object:
    from peft import LoraConfig
    return LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=[
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])


def measure_transformers(work: Work, device: str) -> None:
    meter, model = Meter("transformers", device, work.repeats), their_model(work, device)
    Q, P, K, C = work.questions, work.prompt, work.completions, work.tokens
    ids = torch.randint(10, work.config["vocab_size"] - 10, (Q, P), device=device)

    def generate(**settings: object) -> None:
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=C, min_new_tokens=C,
                                 pad_token_id=0, num_return_sequences=K, **settings)
        assert out.shape == (Q * K, P + C)

    facts = {"tokens": Q * K * C, "sequences": Q * K}
    with torch.inference_mode():
        once = meter("prefill", lambda: model(input_ids=ids, logits_to_keep=1), tokens=Q * P)
    for method, settings in (("beam", {"num_beams": K, "do_sample": False}), ("sample", {"do_sample": True, "top_k": 0})):
        seconds = meter(f"generate ({method})", lambda: generate(**settings), **facts)
        meter.row(f"decode one token ({method})", [(seconds - once) / C], 0)


def measure_peft(work: Work, device: str) -> None:
    from peft import get_peft_model
    meter, model = Meter("peft", device, work.repeats), get_peft_model(their_model(work, device), lora_config())
    Q, P, K, C = work.questions, work.prompt, work.completions, work.tokens
    ids = torch.randint(10, work.config["vocab_size"] - 10, (Q * K, P + C), device=device)

    def logprobs(rows: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            logits = model(input_ids=rows, logits_to_keep=C + 1).logits[:, :-1].float()
        return logits.log_softmax(dim=-1).gather(2, rows[:, -C:, None])

    def reference() -> None:
        with torch.no_grad(), model.disable_adapter():
            for rows in ids.split(work.micro_batch):
                logprobs(rows)

    def update() -> None:
        for rows in ids.split(work.micro_batch):
            logprobs(rows).mean().backward()
        model.zero_grad()

    meter("reference", reference, tokens=Q * K * (P + C))
    meter("update", update, tokens=Q * K * (P + C))


def measure_trl(work: Work, device: str, args: argparse.Namespace) -> None:
    import random
    import tempfile

    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    meter, times = Meter("trl", device, work.repeats), []
    Q, P, K, C = work.questions, work.prompt, work.completions, work.tokens
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, **{x: i for i, x in enumerate(letters, 4)}},
                                       unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>",
                                        unk_token="<unk>", padding_side="left")
    draws = random.Random(0)
    texts = ["".join(draws.choice(letters) for _ in range(P)) for _ in range(256)]
    if work.prompts:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(args.tokenizer / "tokenizer.json"), padding_side="left")
        tokenizer.pad_token = tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)
        texts = tokenizer.batch_decode(work.prompts) * 64
        assert [tuple(tokenizer(text)["input_ids"]) for text in texts[:Q]] == list(work.prompts)
    prompts = Dataset.from_list([{"prompt": text} for text in texts])

    class Timer(TrainerCallback):
        def on_step_begin(self, *args: object, **named: object) -> None:
            meter.settle()
            self.start = time.perf_counter()

        def on_step_end(self, *args: object, **named: object) -> None:
            meter.settle()
            times.append(time.perf_counter() - self.start)

    def reward(completion_ids: list[list[int]], **named: object) -> list[float]:
        assert [len(ids) for ids in completion_ids] == [C] * len(completion_ids)
        return [float(i % K) for i in range(len(completion_ids))]

    with tempfile.TemporaryDirectory() as folder, meter.peak() as peak:
        together = min(work.micro_batch, Q * K)
        settings = GRPOConfig(output_dir=folder, per_device_train_batch_size=together,
                              gradient_accumulation_steps=Q * K // together, num_generations=K, max_completion_length=C,
                              beta=0.04, learning_rate=1e-6, max_steps=1 + work.repeats, report_to=[], save_strategy="no",
                              bf16=device == "cuda", use_cpu=device == "cpu", gradient_checkpointing=device == "cuda",
                              generation_kwargs={"min_new_tokens": C}, disable_tqdm=True, logging_steps=1000)
        trainer = GRPOTrainer(model=their_model(work, device), reward_funcs=reward, args=settings, train_dataset=prompts,
                              processing_class=tokenizer, peft_config=lora_config(), callbacks=[Timer()])
        trainer.train()
        meter.row("step", times[1:], peak(), tokens=Q * K * C, sequences=Q * K)


# --------------------------------------------------------------------------------------------------------------- table
def show(row: dict) -> None:
    memory = f"{row['peak_bytes'] / 1e9:.2f} GB" if row["peak_bytes"] else ""
    print(f"{row['phase']:26} {row['who']:13} {row['median_s'] * 1e3:7.1f} ms {row['min_s'] * 1e3:9.1f} … "
          f"{row['max_s'] * 1e3:9.1f} ms {memory:>9}", flush=True)


def chosen_work(args: argparse.Namespace) -> Work:
    work = WORKS[args.model, args.device]
    if args.questions:
        work = replace(work, questions=args.questions)
    return replace(work, **real_prompts(args, work.questions)) if args.prompts else work


def real_prompts(args: argparse.Namespace, count: int) -> dict[str, object]:
    from tokenizers import Tokenizer

    from minigrpo.task.sql.data.temptabqa import load_databases, load_questions
    from minigrpo.task.sql.prompt import render_prompt, schema_text
    tokenizer, tables = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json")), load_databases(args.prompts)
    texts = [render_prompt("plain", question.text, schema_text("plain", tables[question.database], 3))
             for question in load_questions(args.prompts, "train")[:count]]
    prompts = tuple(tuple(tokenizer.encode(text).ids) for text in texts)
    return {"prompts": prompts, "prompt": max(map(len, prompts))}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the phases of one GRPO step.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", choices=("tiny", "smollm2", "codegemma7b"), default="tiny")
    parser.add_argument("--peers", action="store_true", help="transformers, peft and trl beside it")
    parser.add_argument("--fuse", action="store_true", help="our small operations through torch.compile")
    parser.add_argument("--checkpointing", action="store_true", help="our layers recomputed in the backward pass")
    parser.add_argument("--questions", type=int, metavar="N", help="in place of the table's")
    parser.add_argument("--prompts", type=Path, metavar="FOLDER", help="of TEMPTABQA-C: real prompts, which share a schema")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="with the tokenizer.json for --prompts")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", choices=WHO, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if bool(args.prompts) != bool(args.tokenizer):
        parser.error("--prompts and --tokenizer need each other")
    work = chosen_work(args)
    if args.only == "minigrpo":
        return measure_minigrpo(work, args.device, fused=args.fuse, checkpointing=args.checkpointing)
    if args.only == "trl":
        return measure_trl(work, args.device, args)
    if args.only:
        return globals()[f"measure_{args.only}"](work, args.device)
    rows = []
    print(f"{'phase':26} {'who':13} {'median':>10} {'min … max':>24} {'peak':>9}")
    for who in (WHO[::3] if args.prompts else WHO) if args.peers else WHO[:1]:
        child = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--only", who], stdout=subprocess.PIPE, text=True,
                                 env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
        for line in child.stdout:
            if line.startswith('{"phase"'):
                rows.append(json.loads(line))
                show(rows[-1])
        if child.wait():
            sys.exit(f"{who} ended with status {child.returncode}")
    if args.json:
        args.json.write_text(json.dumps({"work": vars(work) | {"prompts": len(work.prompts)}, "machine": machine(args.device), "rows": rows}, indent=1) + "\n")


def machine(device: str) -> dict[str, object]:
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return {"device": name, "torch": torch.__version__}


if __name__ == "__main__":
    main()
