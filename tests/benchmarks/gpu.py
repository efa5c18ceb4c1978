"""Measures what needs a GPU, the most valuable part first, in a given number of minutes.

    python -m tests.benchmarks.gpu --model DIR --data DIR --out DIR [--minutes 13] [--parts learn,device,small,step]
                                   [--grpo-minutes M] [--set section.key=value ...] [--repeat] [--device cuda|cpu] [--rehearse]

    learn    SmolLM2 on TEMPTABQA-C: the warm-up of configs/smollm2.toml, then GRPO for M minutes (default: as long as the
             later parts allow); evaluation before and after on Original and CounterFactual; paired differences with intervals
    device   tests/policy/test_device.py on the GPU: first without, then with model.fuse
    small    step.py at SmolLM2-135M's shape: plain, model.fuse
    step     step.py at CodeGemma-7B's shape: plain, model.fuse, model.checkpointing; memory beside the plan
    beams    only if named: GRPO from learn's start with the paper's K = 2 beams, for the rest of the time

Whenever there is a new figure, OUT/results.json and OUT/results.md are written, so a run that is killed keeps its figures.
Run again with the same OUT, the program skips finished parts and resumes training; --repeat measures the named parts anew. A
part that cannot finish in the time left is skipped. When a part's time is over, its process gets SIGTERM, and SIGKILL 20
seconds later; then the next part begins. --set changes the config of learn and beams. --rehearse uses tiny sizes, a new model,
the tests' data, and a tenth of each part's minutes.

Nothing is downloaded. The machine needs:
    Python 3.11 or newer with torch, safetensors, tokenizers, huggingface_hub, tqdm, pymysql; for device also pytest,
    hypothesis, numpy, transformers, peft; a C compiler for model.fuse
    MariaDB's server on the PATH, for learn and beams. The Debian packages that are enough: mariadb-server-core,
    mariadb-client-core, mariadb-common, libaio1, liburing2, libnuma1
    --model: a folder of SmolLM2-135M-Instruct with config.json, tokenizer.json, tokenizer_config.json, model.safetensors
    --data: TEMPTABQA-C as published
"""

import argparse
import json
import re
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigrpo.config import load_config
from tests.benchmarks.gpu_visit import Figures, Visit, last_line
from tests.paths import MINI, ROOT

START = 30.0                    # seconds for all of the evaluation after GRPO but its questions: loading, --compare
CONFIG = "configs/smollm2.toml"
FOR_A_GPU = ("grpo.questions=16", "generation.max_new_tokens=256", "grpo.micro_batch_tokens=32768", "reward.preset=strict",
             "evaluation.batch=256")
REHEARSAL = ("warmup.examples=2", "grpo.questions=2", "generation.max_new_tokens=16", "evaluation.questions=8",
             "run.evaluate_every=10", "run.save_every=5", "run.sample_every=0", "model.new.max_positions=1024")


# ------------------------------------------------------------------------------------------------------- learn, beams
def learn(visit: Visit, part: str, stop: float) -> None:
    folder = visit.out / part
    run, sets = folder / "run", settings(visit, part)
    resume = ["--resume"] if (run / "config.toml").exists() else []
    status = visit.run(part, "train.log", [sys.executable, "train.py", CONFIG, *sets, *resume], grpo_end(visit, run, stop),
                       lambda: visit.record(part, **progress(run)))
    if status not in (0, 128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL):
        return visit.record(part, status="failed", error=f"train.py ended with {status}: {last_line(folder / 'train.log')}")
    states = sorted(state for state in run.glob("checkpoints/step-*") if re.fullmatch(r"step-\d{6,}", state.name))
    if not states:
        return visit.record(part, status="stopped", error="the time was over before the first step of GRPO was done")
    splits = load_config(run / "config.toml").evaluation.report
    for log, command in (
            ("eval.log", [CONFIG, *sets, "--adapter", states[-1], "--split", ",".join(splits), "--out", folder / "after"]),
            ("compare.log", ["--compare", run / "before.jsonl", folder / "after", "--out", folder / "compare"])):
        # It may take the next part's time, which is worth less.
        if status := visit.run(part, log, [sys.executable, "eval.py", *command], lambda: visit.end):
            return visit.record(part, status="stopped", error=f"eval.py ended with {status}: {last_line(folder / log)}")
    after, difference = (json.loads((folder / name).read_text(encoding="utf-8"))
                         for name in ("after/summary.json", "compare/compare.json"))
    visit.record(part, after=without_kinds(after), difference=difference, status="done", error="")


def settings(visit: Visit, part: str) -> list[str]:
    """The config's overrides as --set options, the same for train.py and eval.py."""
    args = visit.args
    data = Path(args.data).resolve()
    start = {"model.path": args.model}
    values = [*FOR_A_GPU, *(REHEARSAL if args.rehearse else ())]
    if part == "beams":
        start = {"model.path": str(visit.out / "learn/run/base"), "warmup.source": ""}
        values += ["generation.method=beam", "generation.completions=2"]
    given = start | {"task.path": str(data), "model.device": args.device, "run.out": str(visit.out / part / "run"),
                     "run.steps": 1_000_000, "evaluation.report": ["original", "counterfactual"]}
    values += [*(f"{key}={json.dumps(value)}" for key, value in given.items()), *args.set]
    return [word for value in values for word in ("--set", value)]


def grpo_end(visit: Visit, run: Path, stop: float) -> Callable[[], float]:
    """When GRPO has to stop: --grpo-minutes after the first evaluation, and early enough for the last one, which takes about
    as long as the first."""
    began: list[float] = []

    def until() -> float:
        if not (run / "summary.json").exists():
            return stop
        if not began:
            began.append(time.monotonic())
        base = run / "base/config.json"
        took = (run / "before.jsonl").stat().st_mtime - base.stat().st_mtime if base.exists() else 15.0
        return min(began[0] + 60 * visit.args.grpo_minutes, stop - START - 1.5 * took)

    return until


def progress(run: Path) -> Figures:
    """What a run's records say by now."""
    found: Figures = {}
    if (run / "summary.json").exists():
        found["before"] = without_kinds(json.loads((run / "summary.json").read_text(encoding="utf-8"))["before"])
    if (run / "metrics.jsonl").exists():
        *lines, _ = (run / "metrics.jsonl").read_text(encoding="utf-8").split("\n")     # the last is empty or being written
        records = list(map(json.loads, lines))
        steps = [record for record in records if record["kind"] == "step"]
        looks = [record for record in records if record["kind"] == "evaluation"]
        phases = sorted({name for record in steps for name in record if name.startswith("seconds/")})
        found |= {"steps": len(steps), "curve": [[look["step"] + 1, look[f"{look['split']}/strict"]] for look in looks],
                  "seconds": {name.removeprefix("seconds/"): statistics.median(record.get(name, 0.0) for record in steps)
                              for name in phases},
                  "peak_bytes": max((record["memory/peak_bytes"] for record in steps), default=0)}
    return found


def without_kinds(summary: Figures) -> Figures:
    return {split: {name: value for name, value in of.items() if name != "kinds"} for split, of in summary.items()}


# -------------------------------------------------------------------------------------------------- device, small, step
def cases(visit: Visit, part: str, stop: float, commands: dict[str, list[object]], read: Callable[[Path], Any]) -> None:
    """A child for each case, one after the other; ``read`` turns its log into figures. Finished cases are kept."""
    found = visit.found(part).get("cases", {})
    for name, command in commands.items():
        if found.get(name, {}).get("status") == "done" or time.monotonic() > stop:
            continue
        log = visit.out / part / f"{name}.log"
        log.unlink(missing_ok=True)

        def tell(status: str, error: str = "", name: str = name, log: Path = log) -> None:
            now = visit.found(part).get("cases", {})
            visit.record(part, cases=now | {name: {"status": status, "error": error, "found": read(log)}})

        status = visit.run(part, log.name, [sys.executable, *command], lambda: stop, lambda: tell("stopped"))
        if status and time.monotonic() < stop:
            tell("failed", last_line(log))
        elif not status:
            tell("done")
    states = [visit.found(part).get("cases", {}).get(name, {}).get("status", "stopped") for name in commands]
    visit.record(part, status=next((state for state in ("failed", "stopped") if state in states), "done"))


def device(visit: Visit, part: str, stop: float) -> None:
    chosen = {"plain": "cuda and not fused", "fuse": "fused"} if visit.args.device == "cuda" else {"plain": "cpu and llama"}
    pytest = ["-m", "pytest", "-v", "-p", "no:cacheprovider", "tests/policy/test_device.py", "-k"]
    cases(visit, part, stop, {name: [*pytest, names] for name, names in chosen.items()}, counts)


def counts(log: Path) -> dict[str, int]:
    """Of tests that passed, failed and were skipped, in a log of pytest -v, even if it breaks off."""
    text = log.read_text(encoding="utf-8", errors="replace")
    words = re.findall(r"^\S+::.* (PASSED|FAILED|ERROR|SKIPPED)", text, re.MULTILINE)
    return {word.lower(): words.count(word) for word in dict.fromkeys(words)}


def steps(visit: Visit, part: str, stop: float) -> None:
    shape = "tiny" if visit.args.rehearse else {"small": "smollm2", "step": "codegemma7b"}[part]
    options = {"plain": [], "fuse": ["--fuse"], "checkpointing": ["--checkpointing"]}
    if part == "small":
        del options["checkpointing"]
    command = ["tests/benchmarks/step.py", "--device", visit.args.device, "--model", shape, "--only", "minigrpo"]
    cases(visit, part, stop, {name: [*command, *option] for name, option in options.items()}, rows)
    if time.monotonic() < stop:
        visit.record(part, planned={name: planned(shape, visit.args.device, name == "checkpointing")
                                    for name in options if name != "fuse"})


def rows(log: Path) -> list[Figures]:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return [json.loads(line) for line in lines if line.startswith('{"phase"')]


def planned(shape: str, device: str, checkpointing: bool) -> int:
    """Bytes that ``--dry-run`` would plan for the work of step.py."""
    import torch

    from minigrpo.planning.memory import Load, make_plan
    from minigrpo.policy.architecture import read_architecture
    from tests.benchmarks.step import RANK, WORKS

    work = WORKS[shape, device]
    cfg = load_config(ROOT / "configs/codegemma7b.toml", [
        f"grpo.questions={work.questions}", f"grpo.micro_batch_tokens={work.budget}", "generation.method=beam",
        f"generation.completions={work.completions}", f"generation.max_new_tokens={work.tokens}", "evaluation.batch=1",
        "warmup.source=", f"model.checkpointing={json.dumps(checkpointing)}"])
    return make_plan(cfg, read_architecture(work.config), Load(work.prompt), rank=RANK, targets=cfg.lora.targets,
                     dtype=torch.bfloat16 if device == "cuda" else torch.float32,
                     keeps_search=device == "cuda" and not checkpointing).peak


# ---------------------------------------------------------------------------------------------------------------- main
@dataclass(frozen=True)
class Part:
    """``least``: minutes without which it is not begun; ``usual``: minutes that the parts before it leave to it."""

    work: Callable[[Visit, str, float], None]
    least: float
    usual: float


PARTS = {"learn": Part(learn, 4.0, 8.0), "device": Part(device, 0.5, 1.0), "small": Part(steps, 0.5, 1.0),
         "step": Part(steps, 0.7, 2.0), "beams": Part(learn, 3.0, 4.0)}


def visit_all(visit: Visit) -> None:
    names, pace = visit.args.parts, 6.0 if visit.args.rehearse else 60.0        # seconds for each minute of a part's
    for place, name in enumerate(names):
        part, later = PARTS[name], sum(PARTS[other].usual for other in names[place + 1:])
        if visit.args.repeat:
            shutil.rmtree(visit.out / name, ignore_errors=True)
            visit.results["parts"].pop(name, None)
        if visit.found(name).get("status") == "done":
            print(f"{name}: done before", flush=True)
        elif visit.left() < pace * part.least:
            print(f"{name}: skipped, it needs {pace * part.least:.0f} s and {max(0, visit.left()):.0f} s are left", flush=True)
        elif name == "beams" and not (visit.out / "learn/run/base").exists():
            print("beams: skipped, there is no start of learn to train from", flush=True)
        else:
            seconds = max(min(visit.left(), pace * part.usual), visit.left() - pace * later)
            print(f"{name}: at most {seconds:.0f} s", flush=True)
            part.work(visit, name, time.monotonic() + seconds)
            print(f"{name}: {visit.found(name)['status']}, {visit.left():.0f} s are left", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what is to be measured on a GPU, in the minutes given.")
    parser.add_argument("--out", required=True, help="folder for results and everything else")
    parser.add_argument("--minutes", type=float, default=13.0, help="until the last part ends, all in all")
    parser.add_argument("--parts", type=lambda text: text.split(","), default="learn,device,small,step", help="in this order")
    parser.add_argument("--model", help="SmolLM2's folder; learn needs it")
    parser.add_argument("--data", help="TEMPTABQA-C; learn and beams need it")
    parser.add_argument("--grpo-minutes", type=float, default=float("inf"), help="of learn and beams; default: what there is")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="for learn and beams")
    parser.add_argument("--repeat", action="store_true", help="measure the named parts anew")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, to see that everything works")
    args = parser.parse_args()
    if args.rehearse:
        args.model, args.data = args.model or "new", args.data or str(MINI)
    if args.model and args.model != "new":
        args.model = str(Path(args.model).resolve())                # train.py runs in ROOT
    if unknown := [name for name in args.parts if name not in PARTS]:
        parser.error(f"argument --parts: there is no part {unknown[0]!r}, only {', '.join(PARTS)}")
    if "learn" in args.parts and not args.model or {"learn", "beams"} & {*args.parts} and not args.data:
        parser.error("learn needs --model and --data, beams --data")
    return args


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))     # so that a running child is ended
    visit = Visit(arguments())
    visit_all(visit)
    print(f"written: {visit.out / 'results.json'}, results.md")


if __name__ == "__main__":
    main()
