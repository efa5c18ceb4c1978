"""Killed at random moments and resumed each time, a run is bit for bit the one that nobody disturbed. A short quickstart from
nothing to its report: a new model, a warm-up with looks, GRPO with evaluations.

A moment is drawn, and the place in the program where it lies is sought: a thread of the run's own waits for so long, then
until the main thread is in the wanted function, then a little longer, and sends the signal wherever that is.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from minigrpo.training.folder import checkpoints
from tests.paths import ROOT

MODULES = {path.stem for path in (ROOT / "minigrpo").rglob("*.py")} | {"train"}
SHORT = ("warmup.examples=96", "warmup.epochs=6", "warmup.stop_at=99", "warmup.look_every=6", "model.new.width=32",
         "model.new.mlp_width=64", "run.steps=16", "run.save_every=2", "run.evaluate_every=3", "run.sample_every=2",
         "run.threads=1", "grpo.questions=2", "evaluation.questions=12", 'evaluation.report=["dev"]',
         "generation.max_new_tokens=24", "generation.method=sample",
         # So small a model is never right, and shall learn nevertheless.
         "reward.preset=minigrpo.experiments.definitions.brevity")

# In the order in which a run comes by: what is over when a signal comes does not come again.
PLACES = ["weights.create_model", "warmup.supervised_update", "warmup.save", "warmup.supervised_update",
          "evaluate.evaluate_policy", "warmup.save", "weights.save_model", "evaluate.report_splits", "run.report",
          "rollout.generate", "database.run_all", "update.update", "run.save", "rollout.generate", "run.record",
          "evaluate.evaluate_policy", "run.save", "update.update", "run.record_evaluation", "evaluate.report_splits"]
ONCE = ["weights.create_model", "weights.save_model", "run.report"]

# Imports all once, then forks a run for each line it reads: [arguments], signal, place, seconds before and within the place.
# It answers with the run's status and where it was when the signal came.
NURSERY = """
import importlib.util, json, os, sys, threading, time
from pathlib import Path
import torch

spec = importlib.util.spec_from_file_location("train", sys.argv[1])
train = importlib.util.module_from_spec(spec)
spec.loader.exec_module(train)
with torch.device("meta"):
    torch.nn.Embedding(1, 1)                                # which imports a second's worth of torch
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
sys.setswitchinterval(1e-4)

def stack(thread):
    frame = sys._current_frames()[thread]
    while frame:
        yield f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
        frame = frame.f_back

def strike(thread, number, place, before, within, report):
    time.sleep(before)
    while place not in stack(thread):
        time.sleep(2e-4)
    time.sleep(within)
    os.write(report, " < ".join(stack(thread)).encode())
    os.kill(os.getpid(), number)

for line in sys.stdin:
    arguments, *moment = json.loads(line)
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        sys.argv = ["train.py", *arguments]
        if moment:
            threading.Thread(target=strike, args=(threading.get_ident(), *moment, into), daemon=True).start()
        sys.exit(train.main())
    os.close(into)
    with open(out) as told:
        where = told.read()
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), where]), file=answers, flush=True)
"""


class Nursery:
    """Runs of train.py, one after the other, each a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", NURSERY, str(ROOT / "train.py")], cwd=ROOT, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, out: Path, *moment: object, resume: bool) -> tuple[int, str]:
        """Exit status (minus the signal, where that ended it) and the stack that the signal met, innermost first."""
        keys = [f"--set={key}" for key in (*SHORT, f"run.out={out}")]
        arguments = ["configs/quickstart.toml", *keys, *["--resume"] * resume]
        self.process.stdin.write(json.dumps([arguments, *moment]) + "\n")
        self.process.stdin.flush()
        return tuple(json.loads(self.process.stdout.readline()))


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.process.communicate()


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert nursery.run(out, resume=False) == (0, "")
    steps = [record for record in contents(out)["metrics.jsonl"] if "reward" in record]
    assert len(steps) == 16 and all(record["grad_norm"] > 0 for record in steps)
    return out


def contents(out: Path) -> dict[str, object]:
    """Every file of a run's folder: its bytes, but for the two things that may differ from one run to the next."""
    found: dict[str, object] = {}
    for file in out.rglob("*"):
        if file.name == "SHA256SUMS":                       # of files that are compared, one of which names the folder
            found[str(file.relative_to(out))] = sorted(line.split()[1] for line in file.read_text().splitlines())
        elif file.name in ("metrics.jsonl", "warmup.jsonl"):
            found[file.name] = [{name: value for name, value in json.loads(line).items()
                                 if not name.startswith(("seconds/", "memory/"))} for line in file.read_bytes().splitlines()]
        elif file.name == "samples.jsonl":
            found[file.name] = [without_seconds(json.loads(line)) for line in file.read_bytes().splitlines()]
        elif file.is_file():
            found[str(file.relative_to(out))] = file.read_bytes().replace(str(out).encode(), b"OUT")
    return found


def without_seconds(sample: dict) -> dict:
    for rollout in sample["rollouts"]:
        del rollout["execution"]["seconds"]
    return sample


def begun(out: Path) -> bool:
    """Whether there is something to resume: a person would start anew where train.py says that there is no run."""
    return (out / "config.toml").exists()


def assert_same(ours: Path, theirs: Path) -> None:
    one, other = contents(ours), contents(theirs)
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize("numbers, places, seed", [((signal.SIGKILL,), PLACES, 0),
                                                   ((signal.SIGTERM, signal.SIGINT), PLACES[1::2], 1)])
def test_stopped_at_random_moments_and_resumed_each_time_it_is_the_same_run(nursery, whole, tmp_path, numbers, places, seed):
    """Killed, twenty times, it is gone at once; asked to stop, ten times, it ends with 128 + the signal."""
    draw, out, met = random.Random(seed), tmp_path / "run", Counter()
    for i, place in enumerate(places):
        number = numbers[i % len(numbers)]
        before, within = draw.uniform(0, 0.3), draw.choice([0, draw.uniform(0, 0.005), draw.uniform(0, 0.05)])
        for attempt in range(5):                            # on a busy machine a short place may pass between two looks
            kept = tmp_path / f"before-{i}-{attempt}"
            shutil.copytree(out, kept) if out.exists() else kept.mkdir()
            status, where = nursery.run(out, int(number), place, before * (place not in ONCE), within, resume=begun(out))
            if where:
                break
            shutil.rmtree(out)
            kept.rename(out)
        assert where, f"the run never came by {place}"
        assert status == (-number if number == signal.SIGKILL else 128 + number), (status, where)
        met[" in ".join(frame for frame in where.split(" < ") if frame.split(".")[0] in MODULES)] += 1
    print(*sorted(f"{count} × {stack}" for stack, count in met.items()), sep="\n")
    assert nursery.run(out, resume=True) == (0, "")
    assert_same(out, whole)


@pytest.mark.slow
def test_the_comparison_sees_a_bit(whole, tmp_path):
    """The control: one bit of one moment of the optimiser's."""
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    file = checkpoints(out)[-1] / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(AssertionError):
        assert_same(out, whole)
