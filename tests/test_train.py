"""train.py: the whole line on real parts. What a run leaves, that it repeats itself, that it survives, what it refuses."""

import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path

import pytest
import torch

import minigrpo.task.sql.task
from minigrpo.common.files import lock_folder
from minigrpo.config import load_config
from minigrpo.policy.files.weights import load_model, load_tensors, save_tensors
from minigrpo.task.sql.engines.database import Database
from minigrpo.training.folder import checkpoints
from tests.mariadb_server import needs_mariadb
from tests.paths import MINI, ROOT
from tests.processes import command_lines
from tests.quick import rest_slow

PROMISED = ["reward", "reward_std", "kl", "clip_ratio", "grad_norm", "frac_reward_zero_std", "completions/mean_length",
            "completions/clipped_ratio", "strict", "ems", "error_rate", "logp_gap_mean", "logp_gap_max", "seconds/generate",
            "seconds/execute", "seconds/reward", "seconds/reference", "seconds/update"]


@pytest.fixture(scope="module")
def run(train_recipe, small_toml, tmp_path_factory) -> Callable[..., Path]:
    """``run("grpo.questions=1", resume=True, out=folder)``: one training run in this process; its folder."""
    def call(*overrides: str, out: Path | None = None, resume: bool = False, status: int = 0) -> Path:
        out = out or tmp_path_factory.mktemp("run") / "run"
        assert train_recipe.train(load_config(small_toml, [f"run.out={out}", *overrides]), resume=resume) == status
        return out
    return call


@pytest.fixture(scope="module")
def whole(run) -> Path:
    """Six steps without interruption, what all the others are compared with: saved at 2, 4 and 6, evaluated at 3 and 6."""
    return run()


def records(out: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (out / name).read_text(encoding="utf-8").splitlines()]


def steps(out: Path) -> list[dict]:
    return [record for record in records(out) if "reward" in record]


def timeless(record: object) -> object:
    """Without seconds and memory, the two things that may differ from one run to the next."""
    if isinstance(record, list):
        return [timeless(item) for item in record]
    if isinstance(record, dict):
        return {key: timeless(value) for key, value in record.items() if not key.startswith(("seconds", "memory/"))}
    return record


def assert_same(ours: Path, theirs: Path) -> None:
    """The same numbers in the same order, the same samples, and the same bytes in the last checkpoint."""
    assert timeless(records(ours)) == timeless(records(theirs))
    assert timeless(records(ours, "samples.jsonl")) == timeless(records(theirs, "samples.jsonl"))
    last, other = checkpoints(ours)[-1], checkpoints(theirs)[-1]
    assert last.name == other.name
    for file in ("adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "state.json"):
        assert (last / file).read_bytes() == (other / file).read_bytes(), file


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


# --------------------------------------------------------------------------------------------------- questions of one's own
def test_a_run_on_databases_that_exist(run, shop, shop_keys):
    """Two steps after a warm-up on the questions' own gold SQL, with a report; and the file is what it was."""
    before = (shop / "shop.sqlite").read_bytes()
    out = run(*shop_keys, "task.samples=1", "warmup.source=jsonl", "warmup.method=lora", "warmup.examples=10",
              "warmup.epochs=1", "warmup.batch=5", "generation.max_new_tokens=90", "run.steps=2", "run.evaluate_every=1",
              'evaluation.report=["dev"]')
    assert [record["step"] for record in steps(out)] == [0, 1]
    assert [record["dev/of"] for record in records(out) if "dev/of" in record] == [5, 5]
    assert len(records(out, "warmup.jsonl")) == 2                       # ten examples, five a step, once
    summary = json.loads((out / "summary.json").read_text())
    assert all(summary[when]["dev"]["n"] == 5 and "suite" not in summary[when]["dev"] for when in ("before", "after"))
    asked = [json.loads(line)["question"] for line in (shop / "train.jsonl").read_text().splitlines()]
    assert all(sample["question"]["text"] in asked for sample in records(out, "samples.jsonl"))
    assert (shop / "shop.sqlite").read_bytes() == before
    assert sorted(file.name for file in shop.iterdir()) == ["dev.jsonl", "shop.sql", "shop.sqlite", "shop.toml", "train.jsonl"]


# --------------------------------------------------------------------------------------------------------- one whole run
def test_a_run_writes_its_files(whole, small_toml):
    """Kept: the last two, 4 and 6, and the best, 3: both evaluations found nothing right, and the first of equals stays."""
    assert sorted(path.name for path in whole.iterdir()) == ["checkpoints", "config.toml", "lock", "metrics.jsonl",
                                                             "samples.jsonl"]
    assert [folder.name for folder in checkpoints(whole)] == ["step-000003", "step-000004", "step-000006"]
    for folder in checkpoints(whole):
        assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", "adapter_config.json", "adapter_model.safetensors",
                                                                  "optimizer.safetensors", "state.json"]
    assert load_config(whole / "config.toml") == load_config(small_toml, [f"run.out={whole}"])


def test_every_step_has_a_record_with_the_names_people_know(whole):
    assert [record["step"] for record in steps(whole)] == [0, 1, 2, 3, 4, 5]
    for record in steps(whole):
        assert [name for name in PROMISED if name not in record] == []
        assert all(type(value) in (int, float) for name, value in record.items() if name != "kind")
        assert record["seconds/generate"] > 0 and record["seconds/update"] > 0
        # Q · K = 8 completions: a share is a number of eighths; of two groups, of halves.
        assert record["error_rate"] * 8 == round(record["error_rate"] * 8)
        assert record["frac_reward_zero_std"] in (0.0, 0.5, 1.0)
        assert 1 <= record["completions/mean_length"] <= record["completions/max_length"] <= 8


def test_the_first_step_starts_where_it_started(whole):
    """The policy is the start policy: no KL. One update per rollout: the ratio is 1 at every step, the clip never acts.
    Search and scoring are the same function, computed in another order: float accuracy."""
    first, *others = steps(whole)
    assert first["kl"] == 0.0 and first["ratio"] == 1.0
    for record in (first, *others):
        assert record["clip_ratio"] == 0.0 and record["ratio"] == pytest.approx(1.0, abs=1e-6)
        assert 0 <= record["logp_gap_mean"] <= record["logp_gap_max"] < 1e-4
    assert all(record["kl"] > 0 for record in others)
    assert all(record["grad_norm"] > 0 and record["skipped"] == 0 for record in steps(whole))


def test_dev_is_evaluated_every_three_steps(whole):
    """After steps 2 and 5 (three and six steps done); dev has one question."""
    evaluations = [record for record in records(whole) if record["kind"] == "evaluation"]
    assert [record["step"] for record in evaluations] == [2, 5]
    for record in evaluations:
        assert set(record) == {"kind", "split", "step", *(f"dev/{name}" for name in (
            "n", "of", "strict", "ems", "rems", "error_rate", "hack", "invented"))} and record["split"] == "dev"
        assert record["dev/n"] == record["dev/of"] == 1
    assert [record["step"] for record in records(whole)] == [0, 1, 2, 2, 3, 4, 5, 5]        # in order of time


def test_samples_are_groups_that_can_be_checked_by_hand(whole):
    """Every third step: 0 and 3. The reward of "paper" is −100 for an error, else 1 + 100 REMS + 1000 EMS."""
    samples = records(whole, "samples.jsonl")
    assert [sample["step"] for sample in samples] == [0, 3]
    for sample in samples:
        assert len(sample["rollouts"]) == 4
        for rollout in sample["rollouts"]:
            terms = rollout["reward"]["terms"]
            expected = 1 + 100 * terms["rems"] + 1000 * terms["ems"] if rollout["execution"]["status"] == "ok" else -100
            assert rollout["reward"]["total"] == expected
            assert len(rollout["completion"]["ids"]) == len(rollout["completion"]["logprobs"])


def test_one_step_moves_every_b_and_no_base_weight(train_recipe, run, sql_model, monkeypatch):
    policies = []
    monkeypatch.setattr(train_recipe, "load_start",
                        lambda *args, start=train_recipe.load_start: policies.append(start(*args)) or policies[-1])
    out = run("run.steps=1")
    moved = load_tensors(checkpoints(out)[0] / "adapter_model.safetensors")
    assert sum(name.endswith("lora_B.weight") for name in moved) == 2 * 7
    assert all(tensor.any() for tensor in moved.values())       # B starts at 0
    now = {name.replace(".base.", "."): tensor for name, tensor in policies[0].model.state_dict().items()}
    for name, tensor in load_model(sql_model, dtype=torch.float32, device="cpu").state_dict().items():
        assert torch.equal(now[name], tensor), name


# --------------------------------------------------------------------------------------------------------- it repeats itself
def test_the_same_seed_gives_the_same_bits_and_another_another(run, whole):
    assert_same(run(), whole)
    other = run("run.seed=1", "run.steps=2")
    assert timeless(steps(other)) != timeless(steps(whole)[:2])
    ours, theirs = (load_tensors(checkpoints(out)[0] / "adapter_model.safetensors") for out in (other, whole))
    assert not any(torch.equal(ours[name], theirs[name]) for name in ours)


@needs_mariadb
def test_mariadb_and_sqlite_give_the_same_run(run, whole):
    """"SELECT 3" means the same to both, and what is no SELECT is refused before either sees it."""
    assert_same(run("database.engine=mariadb"), whole)


def test_every_step_draws_anew(train_recipe, run, monkeypatch):
    """dev has one question; with a learning rate of 0 two steps on it differ in nothing but their 16 draws, each of four
    statements and more."""
    seen = []
    monkeypatch.setattr(train_recipe, "collect", lambda *args, collect=train_recipe.collect, **options:
                        seen.append(collect(*args, **options)) or seen[-1])
    run("run.steps=2", "task.split=dev", "grpo.learning_rate=0", "grpo.questions=1", "generation.completions=16",
        "run.evaluate_every=0")
    first, second = ([rollout.completion.ids for rollout in group.rollouts] for group, in seen)
    assert first != second


def test_beams_repeat_themselves_too(run):
    one, other = (run("generation.method=beam", "generation.completions=2", "run.steps=2") for _ in "ab")
    assert_same(one, other)
    assert all(record["logp_gap_max"] < 1e-4 for record in steps(one))


# ------------------------------------------------------------------------------------------------------------- it goes on
def test_three_steps_and_three_more_are_six(run, whole):
    out = run("run.steps=3")
    assert_same(run(out=out, resume=True), whole)
    assert "steps = 6" in (out / "config.toml").read_text()


def test_updates_per_rollout_resume_too(run):
    """Two optimiser steps a rollout: the state counts them, the records count rollouts."""
    overrides = ("grpo.updates_per_rollout=2", "generation.max_new_tokens=4", "run.evaluate_every=0")
    at_once = run(*overrides, "run.steps=2")
    out = run(*overrides, "run.steps=1")
    assert_same(run(*overrides, "run.steps=2", out=out, resume=True), at_once)
    state = load_tensors(checkpoints(out)[-1] / "optimizer.safetensors")
    assert state["model.layers.0.mlp.up_proj.lora_A/step"].item() == 4


def test_resuming_what_is_done_does_nothing(run, whole, tmp_path):
    out = Path(shutil.copytree(whole, tmp_path / "copy"))
    assert_same(run(out=out, resume=True), whole)


def test_torn_records_heal(run, whole, tmp_path):
    """As after a power cut: the records are ahead of the newest checkpoint, and end in the middle of a character."""
    out = Path(shutil.copytree(whole, tmp_path / "copy"))
    shutil.rmtree(out / "checkpoints/step-000006")
    for name in ("metrics.jsonl", "samples.jsonl"):
        with open(out / name, "ab") as file:
            file.write('{"step": 5, "text": "Õ'.encode()[:-1])
    assert_same(run(out=out, resume=True), whole)


def interrupt(monkeypatch, recipe, name: str, number: int, *, call: int, times: int = 1, before: bool = True) -> None:
    """Send this process a signal at the ``call``-th call of one of the recipe's parts."""
    original, calls = getattr(recipe, name), iter(range(1, 100))

    def replaced(*args: object, **options: object) -> object:
        hit = next(calls) == call
        result = None if hit and before else original(*args, **options)
        for _ in range(times if hit else 0):
            os.kill(os.getpid(), number)
        return original(*args, **options) if hit and before else result

    monkeypatch.setattr(recipe, name, replaced)


@pytest.mark.parametrize("part, call, done", rest_slow([
    ("collect", 2, 2),              # in step 1, which is finished; 2 steps are saved anyway
    ("update", 3, 3),               # in step 2: its evaluation is due, left out, and made up for
    ("make_batch", 6, 6),           # in the last step
]))
def test_after_one_signal_it_goes_on_as_if_nothing_had_been(train_recipe, run, whole, monkeypatch, capsys, part, call, done):
    with monkeypatch.context() as patch:
        interrupt(patch, train_recipe, part, signal.SIGTERM, call=call)
        out = run(status=128 + signal.SIGTERM)
    assert capsys.readouterr().out.count("stopping after this step (again: at once) ...") == 1
    assert len(steps(out)) == done and checkpoints(out)[-1].name == f"step-{done:06d}"
    assert_same(run(out=out, resume=True), whole)


@pytest.mark.parametrize("part, times, before, done", rest_slow([
    ("collect", 2, True, 2),        # twice while generating: the two steps before are saved
    ("update", 2, False, 4),        # twice with the optimiser already moved, in step 5: back to the newest checkpoint
    ("evaluate_policy", 1, True, 3),        # once in an evaluation: that takes long, and is done again
]))
def test_at_once_is_at_once_and_goes_on_too(train_recipe, run, whole, monkeypatch, tmp_path, part, times, before, done):
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        interrupt(patch, train_recipe, part, signal.SIGINT, call={"evaluate_policy": 1, "update": 6}.get(part, 3), times=times, before=before)
        run(out=out)
    assert left.value.code == 128 + signal.SIGINT
    assert checkpoints(out)[-1].name == f"step-{done:06d}"
    assert_same(run(out=out, resume=True), whole)


def test_a_signal_while_loading_leaves_nothing(train_recipe, cli, monkeypatch, tmp_path):
    interrupt(monkeypatch, train_recipe, "load_start", signal.SIGINT, call=1)
    ended = cli(train_recipe, "--set", f"run.out={tmp_path / 'run'}")
    assert ended.status == 130 and "Traceback" not in ended.err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.toml", "lock"}      # it may be started over


GIVEN = """
import sys
from minigrpo.task.sql.engines.mariadb import open_private
with open_private({"other": ()}) as server:
    print(server._readers["other"].socket, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def given_server() -> Iterator[Callable[[], tuple[str, int]]]:
    """``given_server()``: the socket and the process of a server that belongs to another process, so that nobody restarts it."""
    owners = []

    def start() -> tuple[str, int]:
        owner = subprocess.Popen([sys.executable, "-c", GIVEN], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 text=True)
        owners.append(owner)
        socket = owner.stdout.readline().strip()
        keeper, = keepers_of(owner.pid)
        return socket, server_of(keeper)

    yield start
    for owner in owners:
        owner.communicate()


@pytest.mark.slow
@needs_mariadb
def test_a_database_that_dies_ends_the_run_with_a_sentence_and_loses_nothing(
        train_recipe, run, whole, cli, monkeypatch, tmp_path, given_server):
    """A given server is killed in the middle of step 3's SQL, as the kernel would when memory runs out; three steps are saved,
    and of the fourth nothing. Resumed on another server, the run is the undisturbed one."""
    (socket, server), (other, _) = given_server(), given_server()
    out, keys = tmp_path / "run", ("database.engine=mariadb", "database.user=root")
    with monkeypatch.context() as patch:
        in_the_middle_of_sql(patch, {5}, lambda: os.kill(server, signal.SIGKILL))       # three steps, an evaluation, a step
        ended = cli(train_recipe, *(f"--set={key}" for key in (*keys, f"run.out={out}", f"database.socket={socket}")))
    message = ended.err.split("\r")[-1].strip().split("\n")[-1]
    assert ended.status == 1 and message.startswith("train.py: MariaDB at ") and "Traceback" not in ended.err, ended
    assert checkpoints(out)[-1].name == "step-000003"
    assert [record["step"] for record in records(out)] == [0, 1, 2, 2]
    assert_same(run(*keys, f"database.socket={other}", out=out, resume=True), whole)


def server_of(keeper: int) -> int:
    """The server that a keeper started: its one child."""
    server, = [pid for pid in command_lines() if f"PPid:\t{keeper}\n" in Path(f"/proc/{pid}/status").read_text()]
    return server


def in_the_middle_of_sql(monkeypatch, calls: set[int], strike: Callable[[], object]) -> None:
    """Do something between the first query of a batch and the others, at its n-th time of all (from 1)."""
    original, counted = minigrpo.task.sql.task.run_all, iter(range(1, 1000))

    def run_all(database: Database, queries: list, threads: int) -> list:
        if next(counted) in calls:
            database.run(*queries[0])
            strike()
        return original(database, queries, threads)

    monkeypatch.setattr(minigrpo.task.sql.task, "run_all", run_all)


@pytest.mark.slow
@needs_mariadb
def test_a_private_server_killed_again_and_again_changes_no_number(train_recipe, cli, whole, monkeypatch, tmp_path):
    """Three times in the middle of a batch of SQL, of steps or of an evaluation. Whether the run brings the server back itself
    or ends with a sentence and is resumed, in the end it is the undisturbed one."""
    out, killed, legs, others = tmp_path / "run", [], 0, keepers_of(os.getpid())

    def kill() -> None:
        keeper, = set(keepers_of(os.getpid())) - set(others)
        killed.append(server_of(keeper))
        os.kill(killed[-1], signal.SIGKILL)

    in_the_middle_of_sql(monkeypatch, {2, 4, 6}, kill)
    status = 1
    while status == 1 and legs < 4:
        ended = cli(train_recipe, "--set", f"run.out={out}", "--set", "database.engine=mariadb", *["--resume"] * (legs > 0))
        status, legs = ended.status, legs + 1
        assert "Traceback" not in ended.err
    assert status == 0 and len(set(killed)) == 3, ended
    assert_same(out, whole)


# -------------------------------------------------------------------------------------------------------------- a full disk
@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """Of four megabytes."""
    (tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", tmp_path / "disk"], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    yield tmp_path / "disk"
    subprocess.run(["umount", "--lazy", tmp_path / "disk"], check=True)


@pytest.mark.parametrize("pages, sizes, file", rest_slow([
    (0, 1, "checkpoints/step-000002"), (0, 3, "checkpoints/step-000004"), (1, 0, "metrics.jsonl"), (2, 0, "samples.jsonl")]))
def test_a_full_disk_ends_the_run_with_a_sentence_and_what_is_there_is_whole(
        train_recipe, run, whole, cli, small_disk, pages, sizes, file):
    """Room for so many pages (the first is config.toml's) or checkpoints: it ends within the first step's record, between that
    and its sample, in the first checkpoint, in the third. What was begun is gone again; with room the run goes on as if
    nothing had been."""
    size = sum(-(-file.stat().st_size // 4096) for file in checkpoints(whole)[-1].iterdir())
    ballast, free = small_disk / "ballast", os.statvfs(small_disk).f_bavail
    ballast.write_bytes(bytes(4096 * (free - pages - sizes * size)))
    out = small_disk / "run"
    ended = cli(train_recipe, "--set", f"run.out={out}")
    message = ended.err.split("\r")[-1].strip().split("\n")[-1]
    assert ended.status == 1 and f"{out}/{file}" in message and "No space left on device" in message, ended
    assert not list(out.rglob("*.writing"))
    ballast.unlink()
    assert_same(run(out=out, resume=True), whole)


# -------------------------------------------------------------------------------------------------------- as a command
def start(config: Path, *arguments: str, **options: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(ROOT / "train.py"), str(config), *arguments], cwd=ROOT, **options)


def keepers_of(pid: int) -> list[int]:
    """The keepers of a process's private servers (task/mariadbd.py)."""
    return [keeper for keeper, line in command_lines().items() if "minigrpo-keeper" in line
            and f"PPid:\t{pid}\n" in Path(f"/proc/{keeper}/status").read_text()]


def recorded(out: Path) -> int:
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b'"reward"') if file.exists() else 0


@pytest.mark.parametrize("recipe", ["train.py", "eval.py"])
def test_ctrl_c_while_torch_is_imported_is_quiet(small_toml, tmp_path, recipe):
    command = [sys.executable, str(ROOT / recipe), str(small_toml), "--set", f"run.out={tmp_path / 'r'}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert eventually(lambda: "/torch/lib/" in Path(f"/proc/{process.pid}/maps").read_text())
    process.send_signal(signal.SIGINT)
    assert (process.communicate()[0], process.returncode) == ("", 130)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["train.py", "eval.py"])
def test_ctrl_c_is_nothing_to_a_recipe_in_a_scripts_background(small_toml, tmp_path, recipe):
    """A shell without job control has ``command &`` ignore SIGINT: it may come from the import of torch to the end."""
    arguments = ["run.steps=1", "run.evaluate_every=0", f"run.out={tmp_path / 'r'}"]
    process = subprocess.Popen([sys.executable, str(ROOT / recipe), str(small_toml), *(f"--set={key}" for key in arguments),
                                *["--split=dev"] * (recipe == "eval.py")], cwd=ROOT, stdout=subprocess.DEVNULL,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    assert process.returncode == 0 and (tmp_path / "r").exists()


@pytest.mark.slow
@needs_mariadb
def test_ctrl_c_in_a_terminal_of_80_columns(small_toml, tmp_path):
    """A real terminal, a real Ctrl-C, a real server: status 130, one message, no line that wraps (but for a path as long as
    the user made it), no process left. Pressed soon after an evaluation, long before the next."""
    out, (main, terminal) = tmp_path / "r", pty.openpty()
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = start(small_toml, "--set", f"run.out={out}", "--set", "database.engine=mariadb", "--set", "run.steps=500",
                    "--set", "run.evaluate_every=5", stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
                    preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0))
    os.close(terminal)
    screen, pressed = b"", False
    while True:
        try:
            screen += os.read(main, 4096)
        except OSError:                                     # the other end is closed: it has ended
            break
        if not pressed and recorded(out) >= 5 and b"dev: strict" in screen:
            keepers, pressed = keepers_of(process.pid), bool(os.write(main, b"\x03"))
    os.close(main)
    assert process.wait() == 130
    shown = [re.sub(r"\x1b\[\w*", "", line) for line in re.split(r"[\r\n]+", screen.decode())]
    assert max(len(line) for line in shown if not line.startswith("saved: ")) <= 80
    assert sum("stopping after this step" in line for line in shown) == 1
    assert not any("Traceback" in line for line in shown)
    assert any(re.match(r"train 5/500 \[.*\], reward -?[\d.]+ strict \d+% kl [\d.e-]+ err \d+%", line) for line in shown)
    assert any(re.match(r"step 4 · dev: strict [\d.]+ %", line) for line in shown)
    assert shown[-2].startswith(f"saved: {out}/checkpoints/step-")
    assert len(keepers) == 1 and keepers[0] not in command_lines()
    assert checkpoints(out)[-1].name == f"step-{recorded(out):06d}"


@pytest.mark.slow
@needs_mariadb
def test_killed_without_warning_it_resumes_from_the_last_checkpoint(small_toml, run, whole, tmp_path):
    """SIGKILL: no handler runs. The records may be ahead of the checkpoint; the server and its files go all the same."""
    out = tmp_path / "r"
    process = start(small_toml, "--set", f"run.out={out}", "--set", "database.engine=mariadb", "--set", "run.steps=500",
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert eventually(lambda: recorded(out) >= 3)
    keeper, = keepers_of(process.pid)
    folder, = re.findall(r"[^\0]*/minigrpo-[0-9a-f]{16}", command_lines()[keeper])
    assert Path(folder).exists()
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert eventually(lambda: keeper not in command_lines() and not Path(folder).exists(), 10)
    saved = int(checkpoints(out)[-1].name.removeprefix("step-"))
    run(f"run.steps={max(6, saved + 1)}", "database.engine=mariadb", out=out, resume=True)
    assert timeless(records(out)[:8]) == timeless(records(whole))
    if saved < 6:                                           # always, unless this machine was very busy elsewhere
        assert_same(out, whole)


@pytest.mark.slow
def test_sigterm_from_outside(small_toml, run, whole, tmp_path):
    out = tmp_path / "r"
    overrides = ("run.steps=500", "run.evaluate_every=0")
    process = start(small_toml, "--set", f"run.out={out}", *(f"--set={override}" for override in overrides),
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert eventually(lambda: recorded(out) >= 1)
    process.terminate()
    printed = process.communicate()[0]
    assert process.returncode == 143 and printed.count("stopping after this step") == 1 and "Traceback" not in printed
    done = recorded(out)
    assert checkpoints(out)[-1].name == f"step-{done:06d}"
    run(f"run.steps={done + 1}", "run.evaluate_every=0", out=out, resume=True)
    assert [record["step"] for record in records(out)] == list(range(done + 1))
    assert timeless(records(out)[:6]) == timeless(steps(whole)[:done + 1])


# ----------------------------------------------------------------------------------------------------- numbers that break
def poison_updates(monkeypatch, recipe, broken: Callable[[int], bool]) -> None:
    """Make the last activation of the n-th update (from 0) NaN; one micro-batch an update, so one pass with gradients."""
    def load(*args: object, start: Callable = recipe.load_start) -> object:
        policy, passes = start(*args), iter(range(1000))
        policy.model.model.norm.register_forward_hook(
            lambda module, inputs, output: output * torch.nan if torch.is_grad_enabled() and broken(next(passes)) else output)
        return policy
    monkeypatch.setattr(recipe, "load_start", load)


def test_steps_whose_numbers_break_move_nothing_and_are_counted(train_recipe, run, whole, monkeypatch, capsys):
    """The second and third of three: the last checkpoint has the bits of a run of one step, and the records say why."""
    with monkeypatch.context() as patch:
        poison_updates(patch, train_recipe, lambda update: update in (1, 2))
        out = run("run.steps=3", "run.evaluate_every=0")
    assert [record["skipped"] for record in steps(out)] == [0.0, 1.0, 1.0]
    assert [record["loss"] is None for record in steps(out)] == [False, True, True]
    said = [line for line in capsys.readouterr().err.splitlines() if "moves nothing" in line]
    assert len(said) == 2 and re.search(r"step 1 moves nothing, something in it is not finite: the log-probs of completion 1 "
                                        r"of 4 of train/\d+$", said[0])
    one = run("run.steps=1", "run.evaluate_every=0")
    for file in ("adapter_model.safetensors", "optimizer.safetensors"):
        ours, theirs = (checkpoints(folder)[-1] / file for folder in (out, one))
        assert ours.read_bytes() == theirs.read_bytes()


def test_five_such_steps_in_a_row_end_the_run_with_one_sentence_and_it_goes_on(train_recipe, cli, run, monkeypatch, tmp_path):
    """From the first step on, so that there is no state of the optimiser to save; mended, it goes on."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        poison_updates(patch, train_recipe, lambda update: True)
        ended = cli(train_recipe, "--set", f"run.out={out}", "--set", "run.evaluate_every=0")
    message = ended.err.split("\r")[-1].strip().split("\n")[-1]
    assert ended.status == 1 and re.fullmatch(
        "train.py: 5 steps in a row moved nothing, since something in them was not finite, first in step 0: the log-probs of "
        r"completion 1 of 4 of train/\d+; what was learned until then is saved", message), ended
    assert checkpoints(out)[-1].name == "step-000005" and untouched(out)
    run("run.evaluate_every=0", out=out, resume=True)
    assert [record["skipped"] for record in steps(out)] == [1.0] * 5 + [0.0] and not untouched(out)


def test_a_model_that_is_broken_from_the_start_is_one_sentence_too(train_recipe, cli, sql_model, tmp_path):
    """A weight of the file is NaN: so is whatever the model says, in the search too."""
    folder = Path(shutil.copytree(sql_model, tmp_path / "model"))
    change(folder / "model.safetensors", lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    for method in ("sample", "beam"):
        ended = cli(train_recipe, "--set", f"run.out={tmp_path / method}", "--set", f"model.path={folder}",
                    "--set", f"generation.method={method}", "--set", "run.evaluate_every=0")
        message = ended.err.split("\r")[-1].strip().split("\n")[-1]
        assert (ended.status, message) == (
            1, "train.py: the model's log-probs are not finite: its weights, or the adapter's, hold NaN or inf")


# ------------------------------------------------------------------------------------------------------- right arithmetic
def untouched(out: Path) -> bool:
    tensors = load_tensors(checkpoints(out)[-1] / "adapter_model.safetensors")
    return not any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)


def test_one_completion_a_question_teaches_nothing(run):
    """K = 1: a reward is its own mean, so every advantage is 0; the policy never moves, and that is no error."""
    out = run("generation.completions=1", "run.steps=2")
    for record in steps(out):
        assert (record["reward_std"], record["frac_reward_zero_std"], record["grad_norm"]) == (0.0, 1.0, 0.0)
        assert record["kl"] == 0.0 and record["skipped"] == 0.0
    assert untouched(out)


def test_equal_rewards_teach_nothing(run):
    """The mock engine answers 1 to whatever is asked, and no answer of train is 1: each reward is 1, no group has spread."""
    out = run("database.engine=mock", "run.steps=2")
    for record in steps(out):
        assert (record["reward"], record["reward_std"], record["frac_reward_zero_std"]) == (1.0, 0.0, 1.0)
        assert record["grad_norm"] == record["loss"] == 0.0
    assert untouched(out)


def test_a_reward_of_ones_own_is_what_trains(run, tmp_path, monkeypatch):
    """It pays the digit that SELECT gives, and its term says whether there was one; what it pays is in the samples, the term
    in the metrics, and our own terms are there too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "digits.py").write_text("""
from minigrpo.task.sql.reward import Reward
def digit(question, sql, execution):
    return Reward(execution.rows[0][0] if execution.ok else -1, {"digit": float(execution.ok)})
""")
    out = run("reward.preset=digits.digit", "run.steps=2")
    rollouts = [rollout for sample in records(out, "samples.jsonl") for rollout in sample["rollouts"]]
    assert rollouts
    for rollout in rollouts:
        execution, reward = rollout["execution"], rollout["reward"]
        assert reward["total"] == (execution["rows"][0][0] if execution["status"] == "ok" else -1)
        assert {"digit", "strict", "reads"} <= reward["terms"].keys() and reward["terms"]["reads"] == 0
    for record in steps(out):
        assert record["terms/digit"] == record["terms/runs"] == 1 - record["error_rate"] and record["terms/reads"] == 0


def test_a_reward_that_raises_ends_the_run_with_one_sentence(train_recipe, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "broken.py").write_text("def reward(question, sql, execution):\n    return 1 / 0\n")
    ended = cli(train_recipe, "--set", f"run.out={tmp_path / 'run'}", "--set", "reward.preset=broken.reward")
    message = ended.err.split("\r")[-1].strip().split("\n")[-1]
    assert ended.status == 1 and re.fullmatch("train.py: the reward broken.reward of (train|dev)/[0-9]+, SQL '.*': "
                                              "ZeroDivisionError: division by zero .*broken.py, line 2.", message), ended


def test_a_batch_in_which_nothing_executes(run):
    """One token is no statement: 2 · 2 errors of −100 each, all cut off at length 1, no spread, no gradient."""
    out = run("generation.max_new_tokens=1", "generation.method=beam", "generation.completions=2", "run.steps=1")
    record, = steps(out)
    assert (record["reward"], record["error_rate"], record["reward_std"]) == (-100.0, 1.0, 0.0)
    assert record["completions/mean_length"] == record["completions/max_length"] == 1
    assert record["completions/clipped_ratio"] == 1.0
    assert record["grad_norm"] == 0.0 and untouched(out)


def test_a_step_may_ask_more_questions_than_there_are(run):
    """Seven of three: every question twice, one three times; 28 completions are counted."""
    out = run("grpo.questions=7", "run.steps=1")
    record, = steps(out)
    assert record["error_rate"] * 28 == pytest.approx(round(record["error_rate"] * 28))
    assert record["kl"] == 0.0 and record["grad_norm"] > 0


def test_no_steps_is_a_run_too(run):
    out = run("run.steps=0")
    assert records(out) == [] and checkpoints(out) == []
    assert run("run.steps=1", out=out) == out               # nothing was computed, so nothing is in the way


def test_micro_batches_change_no_result(run, whole):
    """One question at a time adds up to the batch: the same draws and rewards, and gradients equal to float accuracy."""
    parts = steps(run("grpo.micro_batch_tokens=1", "run.steps=2"))
    for ours, theirs in zip(parts, steps(whole)):
        assert ours["reward"] == theirs["reward"]
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert ours["kl"] == pytest.approx(theirs["kl"], rel=1e-3)
    assert parts[0]["kl"] == 0.0 and parts[0]["ratio"] == pytest.approx(1.0, abs=1e-6)


def test_training_goes_on_from_an_adapter(run, whole, tmp_path):
    """A start adapter is the reference: the KL is 0 again at its first step, though its B are not 0."""
    adapter = checkpoints(whole)[-1]
    out = run(f"model.adapter={adapter}", "lora.rank=1", "run.steps=4")         # the adapter's own rank counts
    assert steps(out)[0]["kl"] == 0.0 < steps(out)[-1]["kl"]
    assert json.loads((checkpoints(out)[-1] / "adapter_config.json").read_text())["r"] == 4
    start, end = (load_tensors(folder / "adapter_model.safetensors") for folder in (adapter, checkpoints(out)[-1]))
    assert all(start[name].shape == end[name].shape and not torch.equal(start[name], end[name]) for name in start)


# -------------------------------------------------------------------------------------------------------------- bad input
def refusal(ended) -> str:
    """One sentence on stderr, status 1, nothing else."""
    assert ended.status == 1, ended
    message, = ended.err.strip("\n").split("\n")
    assert message.startswith("train.py: ")
    return message.removeprefix("train.py: ")


@pytest.mark.parametrize("override, sentence", [
    ("generation.complections=2", "--set: there is no key generation.complections; the nearest is generation.completions"),
    ("run.steps=many", "--set: run.steps: expected an integer, got 'many'"),
    ("grpo.clip_low=2", "--set: grpo.clip_low: expected a number ≥ 0.* and ≤ 1.*, got 2.0"),
    ("task.path=nowhere/b", "there is no benchmark folder nowhere/b; fetch it with: "
                            "git clone https://github.com/CoRAL-ASU/TEMPTABQA-C nowhere/b"),
    ("task.split=trian", "unknown split 'trian' .did you mean 'train'..: the benchmark has train, dev, .*"),
    ("task.split=hard", "split 'hard' has no file .*Hard.tsv; splits that are there: train, dev, .*"),
    ("evaluation.split=test", "unknown split 'test'.*"),
    ("reward.preset=stric", "unknown reward 'stric' .did you mean 'strict'..: the presets are paper, strict, .*; one of your own "
                            "is module.function"),
    ("reward.preset=no_such.reward", "the reward no_such.reward: there is no module no_such, installed or in .*"),
    ("model.path=no/such/model", "model.path: there is no folder no/such/model"),
    ("model.path=.", ". is no model folder: it has no config.json"),
    ("model.device=gpu", "model.device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
    ("model.device=cuda:7", "model.device: 'cuda:7' was asked for; CUDA devices here: .*"),
    ("model.adapter=nowhere", "nowhere/adapter_config.json is missing"),
    ('lora.targets=["q_proj", "query"]', "lora.targets: the model has no linear layer named query"),
    ("generation.max_new_tokens=1000", "the prompt of train/0 has [0-9]+ tokens; with generation.max_new_tokens = 1000 that is "
                                       "more than the model's context of 1024: lower it, task.samples or the number of "
                                       "task.examples"),
])
def test_a_users_mistake_is_one_sentence(train_recipe, cli, tmp_path, override, sentence):
    ended = cli(train_recipe, "--set", f"run.out={tmp_path / 'run'}", "--set", override)
    message = ended.err.split("\r")[-1].strip()
    assert ended.status == 1 and re.fullmatch(f"train.py: {sentence}", message.split("\n")[-1]), ended
    assert "Traceback" not in ended.err


def test_a_config_that_is_not_there_or_incomplete(train_recipe, cli, tmp_path):
    assert refusal(cli(train_recipe, config=tmp_path / "no.toml")) == f"{tmp_path}/no.toml: No such file or directory"
    (tmp_path / "c.toml").write_text("[run]\nout = 'x'\n")
    assert refusal(cli(train_recipe, config=tmp_path / "c.toml")) == \
        "model.path is missing: a Hugging Face model folder, a hub id, or \"new\": a small model of [model.new] that knows nothing"


@pytest.mark.parametrize("spoil, sentence", [
    (lambda folder: (folder / "tokenizer.json").unlink(), "{folder} has no tokenizer.json"),
    (lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0", "mod'),
     "{folder}/tokenizer.json is not a tokenizer file: "),
    (lambda folder: (folder / "config.json").write_text("{}"), "{folder}/config.json: model_type None is not supported"),
    (lambda folder: (folder / "model.safetensors").unlink(), "{folder}/model.safetensors is missing"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99),
     "{folder}/model.safetensors is not a whole safetensors file"),
    (lambda folder: change(folder / "model.safetensors", lambda tensors: tensors.pop("model.norm.weight")),
     "{folder}: the safetensors files lack model.norm.weight"),
    (lambda folder: change(folder / "model.safetensors", lambda tensors: tensors.update(extra=torch.zeros(1))),
     "{folder}: the safetensors files have no place for extra"),
    (lambda folder: change(folder / "model.safetensors", lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)})),
     "{folder}: tensor model.norm.weight has shape [3], config.json says [32]"),
])
def test_a_folder_that_is_no_model(train_recipe, cli, sql_model, tmp_path, spoil, sentence):
    folder = Path(shutil.copytree(sql_model, tmp_path / "model"))
    spoil(folder)
    message = refusal(cli(train_recipe, "--set", f"run.out={tmp_path / 'run'}", "--set", f"model.path={folder}"))
    assert message.startswith(sentence.format(folder=folder))


def change(file: Path, edit: Callable[[dict], object]) -> None:
    tensors = load_tensors(file)
    edit(tensors)
    save_tensors(file, tensors)


def test_an_adapter_of_another_base(train_recipe, cli, whole, tmp_path):
    """Another depth: layers that are not here. Another width: shapes that do not fit."""
    for number, (edit, sentence) in enumerate((
            (lambda tensors: tensors.update({name.replace(".1.", ".5."): tensor.clone() for name, tensor in tensors.items()}),
             "the adapter's tensors have no place for "),
            (lambda tensors: tensors.update({name: torch.zeros(4, 64) for name in list(tensors) if "q_proj.lora_A" in name}),
             "q_proj.lora_A.weight has shape [4, 64], this model's adapter [4, 32]: an adapter of another base or rank"))):
        folder = Path(shutil.copytree(checkpoints(whole)[0], tmp_path / str(number)))
        change(folder / "adapter_model.safetensors", edit)
        assert sentence in refusal(cli(train_recipe, "--set", f"run.out={tmp_path / 'run'}", "--set", f"model.adapter={folder}"))


def test_no_server_on_the_path(train_recipe, cli, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    message = refusal(cli(train_recipe, "--set", f"run.out={tmp_path / 'run'}", "--set", "database.engine=mariadb"))
    assert message == ("no mariadb-install-db on the PATH: install MariaDB (apt-get install mariadb-server) or name a server")


def test_a_broken_benchmark_row(train_recipe, cli, tmp_path):
    folder = Path(shutil.copytree(MINI, tmp_path / "benchmark"))
    with open(folder / "Train_set/train_set.tsv", "a", encoding="utf-8") as file:
        file.write("only\tthree\tfields\n")
    message = refusal(cli(train_recipe, "--set", f"run.out={tmp_path / 'run'}", "--set", f"task.path={folder}"))
    assert message == f"{folder}/Train_set/train_set.tsv, record 3: expected 8 fields, got 3"


def test_a_folder_in_use_is_said_to_be_that(train_recipe, cli, whole):
    """By a run under way, whose folder of course holds a run: another name or --resume would be wrong advice."""
    for extra in ((), ("--resume",)):
        with lock_folder(whole):
            assert refusal(cli(train_recipe, "--set", f"run.out={whole}", *extra)) == f"{whole} is in use by another process"


def test_a_run_in_the_way(train_recipe, cli, whole, tmp_path):
    before = (whole / "metrics.jsonl").read_bytes()
    assert "already holds a run" in refusal(cli(train_recipe, "--set", f"run.out={whole}"))
    assert refusal(cli(train_recipe, "--set", f"run.out={whole}", "--set", "grpo.questions=3", "--resume")) == \
        "--resume: grpo.questions was 2 and is now 3; to change it, start another run"
    assert refusal(cli(train_recipe, "--set", f"run.out={tmp_path / 'typo'}", "--resume")) == \
        f"--resume: {tmp_path / 'typo'} holds no run; to start one, leave --resume out"
    (tmp_path / "file").write_text("")
    assert refusal(cli(train_recipe, "--set", f"run.out={tmp_path / 'file'}")) == \
        f"run.out: {tmp_path / 'file'} cannot be written to: File exists"
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_as_a_command_a_mistake_is_one_line_and_status_1(small_toml):
    ended = subprocess.run([sys.executable, str(ROOT / "train.py"), str(small_toml), "--set", "run.step=1"], cwd=ROOT,
                           capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "train.py: --set: there is no key run.step; the nearest is run.steps\n"
