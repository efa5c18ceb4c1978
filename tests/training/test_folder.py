"""folder.py: which folders a run takes, and that it writes over nobody else's files."""

import subprocess
import sys
from pathlib import Path

import pytest

from minigrpo.common.errors import UserError
from minigrpo.config import Config, dump_config, load_config
from minigrpo.training.checkpoints import write_state
from minigrpo.training.folder import check_folder, checkpoints, has_steps, open_folder


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
