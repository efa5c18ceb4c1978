"""folder.py: which folders a run takes, and that it writes over nobody else's files.

A checkpoint that is as it was written is found again; one that is not is refused, and the one before it is used. What training
keeps there: an optimiser's state, with which it goes on to the same bit, and steps that were not finite.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minigrpo.common.errors import UserError
from minigrpo.config import Config, dump_config, load_config
from minigrpo.policy.files.weights import load_model, load_tensors, save_tensors
from minigrpo.policy.lora import adapter_parameters
from minigrpo.training.folder import (
    MAX_DROPPED_IN_A_ROW,
    DroppedSteps,
    check_folder,
    checkpoints,
    drop_states,
    has_steps,
    load_dropped,
    load_optimizer,
    newest_state,
    open_folder,
    optimizer_tensors,
    states,
    write_state,
)
from minigrpo.training.warmup import supervised_update
from minigrpo.update import make_optimizer
from tests.test_update import GRPO_1, SPREAD, adapted, make_groups, one_step, snapshot
from tests.training.test_supervised_update import EXAMPLES


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def cfg(small_toml, out) -> Config:
    return load_config(small_toml, [f"run.out={out}"])


def contents(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Everything below a folder: when it was last written, and what it holds; a folder holds None."""
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
            for path in (folder, *folder.rglob("*"))}


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def refusal(cfg: Config, *, resume: bool = False) -> str:
    """The one sentence of both: of the check before anything is loaded, and of the folder that is opened."""
    sentences = []
    for call in (check_folder, lambda cfg, *, resume: open_folder(cfg, resume=resume).__enter__()):
        with pytest.raises(UserError) as caught:
            call(cfg, resume=resume)
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1] and "\n" not in sentences[0]
    return sentences[0]


# ----------------------------------------------------------------------------------------------- somebody else's folder
THESIS = {"new/thesis.txt": "years of work", "summary.json": "{}"}
FOREIGN = {
    "a thesis": (THESIS, "holds new and no config.toml"),
    "a summary": ({"summary.json": "{}", "notes.txt": "mine"}, "holds summary.json and no config.toml"),
    "rows before": ({"before.jsonl": "{}"}, "holds before.jsonl and no config.toml"),
    "rows after": ({"after.jsonl": "{}"}, "holds after.jsonl and no config.toml"),
    "a model": ({"base/model.safetensors": "weights"}, "holds base and no config.toml"),
    "checkpoints of another program": ({"checkpoints/last.pt": "weights"}, "holds checkpoints and no config.toml"),
    "another program's config": ({"config.toml": "[tool]\nname = 1\n", **THESIS}, "there is no key tool.name"),
    "a config that is no TOML": ({"config.toml": "not = [toml", **THESIS}, "config.toml is not valid TOML"),
    "an empty config": ({"config.toml": "", **THESIS}, "no run has written its config.toml"),
    "a config of our keys, written by hand": ({"config.toml": '[model]\npath = "m"  # mine\n', **THESIS},
                                              "no run has written its config.toml"),
}


@pytest.mark.parametrize("files, why", FOREIGN.values(), ids=FOREIGN)
def test_a_folder_that_is_no_runs_is_refused_and_stays_as_it_is(cfg, out, files, why):
    """Not a file is changed, none is added, not even the lock."""
    fill(out, files)
    before = contents(out)
    message = refusal(cfg)
    assert message.startswith(f"{out} ") and why in message and message.endswith(": choose another run.out")
    assert contents(out) == before


def test_the_recipe_refuses_it_too_and_changes_nothing(train_recipe, cli, out):
    fill(out, THESIS)
    before = contents(out)
    ended = cli(train_recipe, "--set", f"run.out={out}")
    assert (ended.status, ended.err) == (1, f"train.py: {out} holds new and no config.toml, so it is not of a run, which "
                                            f"would write over it: choose another run.out\n")
    assert contents(out) == before


# ------------------------------------------------------------------------------------------------ folders that are taken
def test_what_a_start_left_that_failed_before_its_first_step_is_replaced(small_toml, cfg, out):
    """Also by a run of another config, whose start would be another one."""
    with open_folder(cfg, resume=False):
        fill(out, {"new/half": "half a model", "summary.json": "{}", "before.jsonl": "{}", "after.jsonl": "{}",
                   "metrics.jsonl": ""})
    other = load_config(small_toml, [f"run.out={out}", "run.seed=1"])
    with open_folder(other, resume=False):
        assert sorted(path.name for path in out.iterdir()) == ["config.toml", "lock", "metrics.jsonl"]
        assert (out / "config.toml").read_text(encoding="utf-8") == dump_config(other)


def test_a_start_that_failed_at_once_leaves_a_lock_alone(cfg, out):
    fill(out, {"lock": ""})
    with open_folder(cfg, resume=False) as folder:
        assert folder == out and load_config(out / "config.toml") == cfg


@pytest.mark.parametrize("name", ["eval/summary.json", "notes.txt", "plots/mine.png"])
def test_files_that_a_run_never_writes_stay_beside_it(cfg, out, name):
    """An evaluation of the start writes to out/eval before there is a run."""
    fill(out, {name: "mine"})
    with open_folder(cfg, resume=False):
        pass
    assert (out / name).read_text() == "mine"


# ------------------------------------------------------------------------------------------------------------ a run's own
def test_a_run_with_steps_is_gone_on_with_or_left_alone(cfg, out):
    """A step is on record, or one of the warm-up, or there is a checkpoint: beside that, with the metrics removed by hand, a
    new run would one day resume from it."""
    with open_folder(cfg, resume=False):
        pass
    assert not has_steps(out)
    for name in ("metrics.jsonl", "warmup.jsonl"):
        fill(out, {name: '{"step": 0}\n'})
        assert has_steps(out)
        assert refusal(cfg) == f"{out} already holds a run: go on with --resume, or choose another run.out"
        assert (out / name).read_text() == '{"step": 0}\n'
        (out / name).unlink()
    with write_state(out / "checkpoints", 2, {}):
        pass
    assert has_steps(out) and [state.name for state in checkpoints(out)] == ["step-000002"]
    assert "already holds a run" in refusal(cfg)
    with open_folder(cfg, resume=True):
        assert has_steps(out)


def test_where_there_is_no_run_none_is_resumed(cfg, out):
    """A slip of the keyboard leaves no folder."""
    assert refusal(cfg, resume=True) == f"--resume: {out} holds no run; to start one, leave --resume out"
    assert not out.exists()


@pytest.mark.parametrize("override, sentence", [
    ("run.seed=7", "run.seed was 0 and is now 7"),
    ("lora.rank=8", "lora.rank was 4 and is now 8"),
    ("grpo.kl_coef=0.5", "grpo.kl_coef was 0.04 and is now 0.5"),
    ("generation.method=beam", "generation.method was 'sample' and is now 'beam'"),
    ("task.split=dev", "task.split was 'train' and is now 'dev'"),
    ("database.engine=mock", "database.engine was 'sqlite' and is now 'mock'"),
    ("reward.preset=strict", "reward.preset was 'paper' and is now 'strict'"),
])
def test_another_config_is_another_run(small_toml, cfg, out, override, sentence):
    with open_folder(cfg, resume=False):
        pass
    other = load_config(small_toml, [f"run.out={out}", override])
    assert refusal(other, resume=True) == f"--resume: {sentence}; to change it, start another run"


def test_what_changes_no_result_may_change(small_toml, cfg, out):
    with open_folder(cfg, resume=False):
        pass
    free = load_config(small_toml, [f"run.out={out}", "run.steps=9", "task.path=elsewhere", "database.connections=2",
                                    "run.save_every=7", "run.threads=2", "evaluation.batch=1", "run.evaluate_every=1",
                                    "run.sample_every=0", "grpo.micro_batch_tokens=7"])
    with open_folder(free, resume=True):
        assert load_config(out / "config.toml") == free


def test_a_torn_config_is_never_there(small_toml, cfg, out, monkeypatch):
    """On resuming it is written anew: were it cut off after [task], all else would seem to have been default, and the run
    could not be gone on with. The disk is full when it is written; the old one stays."""
    with open_folder(cfg, resume=False):
        pass
    before = (out / "config.toml").read_text()
    more = load_config(small_toml, [f"run.out={out}", "run.steps=2"])

    def full(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device: '.*config.toml'"):
        patch.setattr(Path, "write_bytes", full)
        with open_folder(more, resume=True):
            pass
    assert (out / "config.toml").read_text() == before
    with open_folder(more, resume=True):
        assert load_config(out / "config.toml") == more


# ---------------------------------------------------------------------------------------------------------------- the lock
def test_a_folder_is_held_with_its_config_in_it_until_it_is_left(cfg, out):
    with open_folder(cfg, resume=False) as folder:
        assert folder == out and load_config(folder / "config.toml") == cfg
        assert refusal(cfg) == refusal(cfg, resume=True) == f"{out} is in use by another process"
    with pytest.raises(RuntimeError), open_folder(cfg, resume=True):
        raise RuntimeError
    with open_folder(cfg, resume=True):                     # left by an error, it is free again
        pass


def test_a_folder_is_for_one_process(cfg, out):
    """The lock is another process's until that is gone, killed included; that is said first, whatever else is wrong."""
    code = ("import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); "
            "time.sleep(60)")
    out.mkdir()
    other = subprocess.Popen([sys.executable, "-c", code, str(out / "lock")], stdout=subprocess.PIPE)
    other.stdout.readline()
    fill(out, THESIS)
    assert refusal(cfg) == f"{out} is in use by another process"
    other.kill()
    other.wait()
    other.stdout.close()
    assert refusal(cfg).startswith(f"{out} holds new and no config.toml")
    for name in ("new/thesis.txt", "summary.json"):
        (out / name).unlink()
    (out / "new").rmdir()
    with open_folder(cfg, resume=False):
        pass


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
def test_a_folder_that_cannot_be_made(small_toml, tmp_path, place):
    (tmp_path / "file").write_text("")
    out = tmp_path / place                                  # /proc stays /proc: an absolute path wins
    with pytest.raises(UserError) as caught, open_folder(load_config(small_toml, [f"run.out={out}"]), resume=False):
        pass
    assert str(caught.value).startswith(f"run.out: {out} cannot be written to: ")


def test_a_warm_up_that_has_made_steps_is_a_run_already(small_toml, cfg, out):
    """To be gone on with under the same config, or not at all; an empty record is none."""
    other = load_config(small_toml, [f"run.out={out}", "run.seed=1"])
    with open_folder(cfg, resume=False):
        (out / "warmup.jsonl").touch()
    with open_folder(cfg, resume=False):
        (out / "warmup.jsonl").write_text('{"step": 0}\n')
    assert "already holds a run: go on with --resume" in refusal(cfg)
    assert "run.seed was 0 and is now 1" in refusal(other, resume=True)
    with open_folder(cfg, resume=True):
        pass
    assert (out / "warmup.jsonl").read_text() == '{"step": 0}\n'


# ----------------------------------------------------------------------------------------------------------- checkpoints
KEYS = {"best": int}


def write(folder: Path, *steps: int) -> None:
    """States of two files, one of which is large enough to lose its end."""
    for step in steps:
        with write_state(folder, step, {"best": step // 2}) as aside:
            (aside / "a.bin").write_bytes(bytes([step % 256]) * 10_000)
            (aside / "b.txt").write_text("b")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest(folder: Path) -> str:
    return newest_state(folder, KEYS)[0].name


def test_the_newest_is_found_with_what_it_was_told(tmp_path):
    write(tmp_path, 2, 11)
    assert newest_state(tmp_path, KEYS) == (tmp_path / "step-000011", {"format": 2, "step": 11, "best": 5})
    assert newest_state(tmp_path / "nothing", KEYS) is None


def test_the_checksums_are_sha256_and_the_systems_own_tool_reads_them(tmp_path):
    write(tmp_path, 3)
    lines = (tmp_path / "step-000003/SHA256SUMS").read_text().splitlines()
    assert lines[0] == f"{hashlib.sha256(bytes([3]) * 10_000).hexdigest()}  a.bin"
    assert [line[66:] for line in lines] == ["a.bin", "b.txt", "state.json"]
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "step-000003", check=True)


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("name, change, wrong", [
    ("a.bin", lambda content: content[:-1], "a.bin is not what was written"),
    ("a.bin", lambda content: b"", "a.bin is not what was written"),
    ("a.bin", flip, "a.bin is not what was written"),
    ("b.txt", None, "b.txt is missing"),
    ("state.json", flip, "state.json is not what was written"),
    ("state.json", None, "state.json is missing"),
    ("SHA256SUMS", None, "it has no SHA256SUMS"),
    ("SHA256SUMS", lambda content: b"", "SHA256SUMS is torn"),
    ("SHA256SUMS", lambda content: content[:-30], "SHA256SUMS is torn"),                 # within the last line
    ("SHA256SUMS", lambda content: content[:content.index(b"b.txt") + 6], "SHA256SUMS is torn"),     # after the last but one
    ("SHA256SUMS", lambda content: content[:-1] + b"x", "SHA256SUMS is torn"),
    ("SHA256SUMS", lambda content: flip(content[:1]) + content[1:], "a.bin is not what was written"),
    ("SHA256SUMS", lambda content: b"\xff\x00" * 99, "SHA256SUMS is torn"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_one_that_is_torn_or_altered_is_refused_and_the_one_before_is_used(tmp_path, capsys, name, change, wrong):
    write(tmp_path, 2, 4)
    file = tmp_path / "step-000004" / name
    file.unlink() if change is None else file.write_bytes(change(file.read_bytes()))
    assert newest(tmp_path) == "step-000002"
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"{tmp_path}/step-000004 is not used: ") and wrong in err
    assert err.endswith("; going on from step-000002\n")


def test_where_none_is_whole_that_is_one_sentence_and_nothing_is_removed(tmp_path, capsys):
    write(tmp_path, 2, 4)
    for state in states(tmp_path):
        (state / "a.bin").write_bytes(b"")
    with pytest.raises(ValueError) as caught:
        newest_state(tmp_path, KEYS)
    assert str(caught.value) == (f"{tmp_path}/step-000004 is not used: a.bin is not what was written, by its checksum in "
                                 f"SHA256SUMS; no other in {tmp_path} can be used: to begin again, remove that folder")
    assert capsys.readouterr() == ("", "") and names(tmp_path) == ["step-000002", "step-000004"]


def test_those_of_an_older_version_are_refused_and_so_is_another_format(tmp_path):
    """Format 1 had no checksums. Format 3, whose checksums are right, is somebody else's."""
    (tmp_path / "old/step-000002").mkdir(parents=True)
    (tmp_path / "old/step-000002/state.json").write_text('{"format": 1, "step": 2, "evaluated": 0, "best": null}\n')
    with pytest.raises(ValueError, match="no SHA256SUMS .those of an older version have none, and cannot be read"):
        newest_state(tmp_path / "old", KEYS)
    with write_state(tmp_path / "new", 2, {"format": 3}):
        pass
    with pytest.raises(ValueError, match="step-000002: format 3, this program reads 2$"):
        newest_state(tmp_path / "new", KEYS)


@pytest.mark.parametrize("step, options, left", [
    (8, {"keep": 2}, [6, 8]),
    (8, {"keep": 2, "best": 4}, [4, 6, 8]),
    (8, {"keep": 2, "best": 8}, [6, 8]),
    (8, {"keep": 2, "best": 3}, [6, 8]),                # the best is gone: that is no reason to keep another
    (4, {"keep": 1}, [4]),                              # beyond step 4 nothing is of this run any more
])
def test_the_last_ones_and_the_best_are_kept(tmp_path, step, options, left):
    write(tmp_path, 2, 4, 6, 8)
    drop_states(tmp_path, step, **options)
    assert names(tmp_path) == [f"step-{kept:06d}" for kept in left]


def test_what_is_no_state_is_neither_used_nor_removed(tmp_path):
    """Files of like names, and folders of a user's own: seven digits are a million steps, which come after all of six."""
    write(tmp_path, 2, 1_000_000 - 1, 1_000_000)
    for name in ("step-2", "step-000009", "step-000003.writing"):
        (tmp_path / name).write_text("mine")
    for name in ("step-3", "step-000002-copy", "step-best", "mine.writing"):
        (tmp_path / name).mkdir()
    assert [state.name for state in states(tmp_path)] == ["step-000002", "step-999999", "step-1000000"]
    assert newest(tmp_path) == "step-1000000"
    before = names(tmp_path)
    drop_states(tmp_path, 1_000_000, keep=1)
    assert names(tmp_path) == [name for name in before if name not in ("step-000002", "step-999999")]


@pytest.mark.parametrize("content, said", [
    ("{}", "/state.json: expected a JSON object with format (integer), got {}"),
    ("[]", "/state.json: expected a JSON object with format (integer), got []"),
    ("[" * 10**5, "/state.json: expected a JSON object with format (integer), got something else (maximum recursion depth"),
    ('{"format": 2, "step": 4}', '/state.json: expected a JSON object with best (integer), got {"format": 2, "step": 4}'),
    ('{"format": 2, "step": -1, "best": 0}', ": its state.json is one of step -1")])
def test_a_state_that_says_something_else_under_right_checksums_is_one_sentence(tmp_path, content, said):
    """Not torn, then, but somebody's: the one before it is not taken in its place."""
    write(tmp_path, 2, 4)
    state = tmp_path / "step-000004"
    (state / "state.json").write_text(content)
    sums = (state / "SHA256SUMS").read_text().splitlines()
    digest = hashlib.sha256(content.encode()).hexdigest()
    (state / "SHA256SUMS").write_text("".join(f"{line}\n" for line in [*sums[:2], f"{digest}  state.json"]))
    with pytest.raises(ValueError) as caught:
        newest_state(tmp_path, KEYS)
    assert str(caught.value).startswith(f"{state}{said}") and "\n" not in str(caught.value)


def test_one_set_aside_for_another_that_never_came_gets_its_name_again(tmp_path):
    """Killed between two renames: the old one of the name is all there is."""
    write(tmp_path, 50)
    (tmp_path / "step-000050").rename(tmp_path / "step-000050.old.writing")
    assert newest_state(tmp_path, KEYS) == (tmp_path / "step-000050", {"format": 2, "step": 50, "best": 25})
    assert names(tmp_path) == ["step-000050"]


def test_what_a_killed_process_left_half_written_goes_too(tmp_path):
    """The one that was being written, and the old one of its name, set aside."""
    write(tmp_path, 2)
    for name in ("step-000004.writing", "step-000002.old.writing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.bin").write_bytes(b"x")
    assert newest(tmp_path) == "step-000002"
    drop_states(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-000002"]


def test_a_state_that_fails_to_be_written_leaves_the_others(tmp_path):
    write(tmp_path, 2)
    with pytest.raises(OSError), write_state(tmp_path, 2, {}) as aside:
        (aside / "a.bin").write_bytes(b"half")
        raise OSError("disk")
    assert newest(tmp_path) == "step-000002" and names(tmp_path) == ["step-000002"]


def test_a_number_that_was_refused_is_written_again(tmp_path):
    """Back at step 2 since 4 was torn, the run comes by 4 a second time."""
    write(tmp_path, 2, 4)
    (tmp_path / "step-000004/a.bin").write_bytes(b"")
    drop_states(tmp_path, 3, keep=1)                        # as a warm-up does before it writes: the sound one must stay
    assert newest(tmp_path) == "step-000002"
    write(tmp_path, 4)
    assert newest(tmp_path) == "step-000004"


# --------------------------------------------------------------------------------------------------- the optimiser's state
def adam(parameters) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters.values(), lr=1e-2, betas=(0.9, 0.98))


def test_an_optimiser_that_is_saved_and_loaded_goes_on_bit_for_bit(sql_model, tmp_path):
    """Two steps, then weights and state through a file into another model and optimiser; two steps more in both."""
    ours, theirs = (load_model(sql_model, dtype=torch.float32, device="cpu").requires_grad_(True) for _ in "ab")
    named, others = dict(ours.named_parameters()), dict(theirs.named_parameters())
    optimizer, other = adam(named), adam(others)

    def steps(model, optimizer):
        for examples in (EXAMPLES[:2], EXAMPLES[2:]):
            supervised_update(model, optimizer, examples, GRPO_1)

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


# ----------------------------------------------------------------------------------------------------------- dropped steps
def see(dropped: DroppedSteps, faults: list[str]) -> DroppedSteps:
    for step, fault in enumerate(faults):
        dropped.see(step, fault)
    return dropped


def test_a_whole_step_starts_the_count_anew_and_the_first_fault_is_kept(capsys):
    dropped = see(DroppedSteps(), ["", "the loss", "the norm"])
    assert vars(dropped) == {"count": 2, "first": "step 1: the loss"}
    assert capsys.readouterr().err.count("moves nothing, something in it is not finite: ") == 2
    assert vars(see(dropped, [""])) == {"count": 0, "first": ""}


def test_five_in_a_row_are_too_many_and_a_resumed_run_may_try_five_more():
    dropped = see(DroppedSteps(), ["the loss"] * (MAX_DROPPED_IN_A_ROW - 1))
    dropped.check()
    with pytest.raises(FloatingPointError, match="^5 steps in a row moved nothing.*first in step 0: the loss"):
        see(dropped, ["the loss"]).check()
    resumed = load_dropped({**vars(dropped), "step": 7})
    assert resumed == dropped
    see(resumed, ["the loss"] * 4).check()
    with pytest.raises(FloatingPointError, match="^10 steps"):
        see(resumed, ["the loss"]).check()
