"""run.py: what is written, kept, cut back, refused; how a run is left. Folder: test_folder.py. The loop: test_train.py."""

import dataclasses
import datetime
import fcntl
import json
import os
import pty
import shutil
import signal
import struct
import sys
import termios
from decimal import Decimal
from pathlib import Path

import pytest
import torch

from minigrpo.common.clock import Clock
from minigrpo.common.console import headline, progress
from minigrpo.common.errors import UserError
from minigrpo.config import load_config
from minigrpo.policy.files.weights import load_tensors
from minigrpo.policy.generation.search import Completion
from minigrpo.policy.lora import adapter_parameters
from minigrpo.rollout import Group, Rollout
from minigrpo.task.contract import Verdict
from minigrpo.task.kinds import make_task
from minigrpo.task.sql.answer import Question, render_answer
from minigrpo.task.sql.engines.database import Execution
from minigrpo.training.folder import checkpoints, open_folder, optimizer_tensors, write_state
from minigrpo.training.run import Run, show
from minigrpo.training.starting_model import adapter_facts, load_start
from minigrpo.update import Update, make_optimizer
from tests.quick import rest_slow

REPORT = [Update({"kl": 0.0, "grad_norm": 1.0}, "")]


def group(*cells: object, sql: str = "SELECT 1", text: str = "How many?", count: int = 1) -> Group:
    terms = {"error": 0.0, "runs": 1.0, "rems": 0.0, "ems": 0.0, "strict": 0.0}
    rollout = Rollout(Completion((1, 2), (-0.5, -0.5), True), sql + ";",
                      Verdict(1.0, terms, "ok", render_answer([cells]), sql, details=Execution("ok", (cells,))))
    return Group(Question("train/0", "train", 0, text, "1", "original", "1"), (1, 2, 3), (rollout,) * count)


@pytest.fixture
def enter(small_toml, tmp_path):
    """``enter("run.steps=2", resume=True)``: a Run on a real policy and optimiser, in one folder for the test."""
    def make(*overrides: str, resume: bool = False, out: Path = tmp_path / "run") -> Run:
        cfg = load_config(small_toml, [f"run.out={out}", *overrides])
        with open_folder(cfg, resume=resume):
            policy = load_start(cfg, task := make_task(cfg))
        return Run(cfg.run, policy, make_optimizer(policy.model, cfg.grpo), task,
                   {"base": cfg.model.path, **adapter_facts(cfg)})
    return make


def take_step(run: Run, step: int) -> None:
    """An optimiser step in a direction of the step's own, and its record: all that a run sees of the mathematics."""
    draw = torch.Generator().manual_seed(step)
    for parameter in adapter_parameters(run.policy.model).values():
        parameter.grad = torch.randn(parameter.shape, generator=draw)
    run.optimizer.step()
    run.record(step, [group(1)], [[0.0]], REPORT, Clock())


def lines(run: Run, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (run.folder / name).read_bytes().decode().split("\n")[:-1]]


def names(run: Run) -> list[str]:
    return [folder.name for folder in checkpoints(run.folder)]


def adapters(run: Run) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in adapter_parameters(run.policy.model).values()]


def moments_of(run: Run) -> dict[str, torch.Tensor]:
    return optimizer_tensors(run.optimizer, adapter_parameters(run.policy.model))


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, ours, theirs))


# --------------------------------------------------------------------------------------------------- saving and resuming
def test_a_saved_run_comes_back_bit_for_bit(enter):
    with enter("run.steps=3") as run:
        for step in run.steps():
            take_step(run, step)
    before, moments = adapters(run), moments_of(run)
    again = enter("run.steps=3", resume=True)
    assert again.done == 3 and same(adapters(again), before)
    assert {name: tensor.tolist() for name, tensor in moments_of(again).items()} == \
           {name: tensor.tolist() for name, tensor in moments.items()}
    # step, exp_avg and exp_avg_sq of A and B of 2 layers × 7 projections
    assert len(moments) == 3 * 2 * 14


def test_the_last_two_checkpoints_and_the_best_are_kept(enter):
    """Saved at 2, 4, 6, 8 by save_every, and at 3 by the evaluation, the best of two: left are 3, 6 and 8."""
    with enter("run.steps=8", "run.save_every=2", "run.evaluate_every=0") as run:
        for step in run.steps():
            take_step(run, step)
            if step in (2, 4):
                run.record_evaluation("dev", {"strict": 50.0 - step, "ems": 0, "rems": 0, "error_rate": 0, "n": 1, "of": 1})
    assert names(run) == ["step-000003", "step-000006", "step-000008"]
    assert run.best == {"step": 3, "strict": 48.0}
    assert enter("run.steps=8", "run.evaluate_every=0", resume=True).best == run.best       # and a resumed run knows it


def test_a_tie_keeps_the_earlier_one(enter):
    with enter("run.steps=2") as run:
        for step in run.steps():
            take_step(run, step)
            run.record_evaluation("dev", {"strict": 10.0, "ems": 0, "rems": 0, "error_rate": 0, "n": 1, "of": 1})
    assert run.best["step"] == 1


def test_what_is_half_written_is_no_checkpoint(enter):
    with enter("run.steps=2") as run:
        for step in run.steps():
            take_step(run, step)
    aside = run.folder / "checkpoints/step-000009.writing"
    aside.mkdir()
    (aside / "state.json").write_text('{"for')
    assert enter("run.steps=2", resume=True).done == 2


def test_the_newest_checkpoint_counts_by_number(enter):
    with enter("run.steps=2") as run:
        for step in run.steps():
            take_step(run, step)
        run.done = 11                                       # as if: 2 < 11, though "2" > "11"
        run.save()
    assert names(run)[-1] == "step-000011"


def test_records_beyond_the_checkpoint_are_cut_and_torn_lines_go_even_within_a_character(enter):
    """Steps 0..3 are recorded, the checkpoint is of step 2 (two steps done): 2 and 3 go, and so do the torn ends. U+2028,
    which Python's splitlines takes for the end of a line, does not end one."""
    with enter("run.steps=2", "run.sample_every=1") as run:
        for step in run.steps():
            take_step(run, step)
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 2}\n{"step": 3}\n{"step": 1')
    with open(run.folder / "samples.jsonl", "ab") as file:
        file.write('{"step": 1, "text": "a\u2028b\x85c"}\n'.encode() + '{"step": 0, "text": "Õ'.encode()[:-1])
    again = enter("run.steps=2", resume=True)
    assert [line["step"] for line in lines(again)] == [0, 1]
    assert [line["step"] for line in lines(again, "samples.jsonl")] == [0, 1, 1]
    assert lines(again, "samples.jsonl")[-1]["text"] == "a\u2028b\x85c"


def test_an_evaluation_that_the_checkpoint_does_not_know_is_cut_and_made_again(enter):
    """Killed when the evaluation after step 1 was on record and the checkpoint that says so was not: two records of it would
    be one too many. What was evaluated before that checkpoint stays."""
    summary = {"strict": 1.0, "ems": 0, "rems": 0, "error_rate": 0, "n": 1, "of": 1}
    with enter("run.steps=4", "run.evaluate_every=1", "run.save_every=1") as run:
        take_step(run, 0)
        run.record_evaluation("dev", summary)
        take_step(run, 1)
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 1, "dev/strict": 1.0}\n')
    again = enter("run.steps=4", "run.evaluate_every=1", "run.save_every=1", resume=True)
    assert [(line["step"], "reward" in line) for line in lines(again)] == [(0, True), (0, False), (1, True)]
    assert again.evaluation_due()


def test_nothing_moved_yet_nothing_to_save(enter):
    with enter("run.steps=0") as run:
        assert list(run.steps()) == []
    assert names(run) == [] and lines(run) == []


# -------------------------------------------------------------------------------------------------------------- refusals
def refusal(enter, *overrides: str, **options: object) -> str:
    with pytest.raises(ValueError) as caught:
        enter(*overrides, **options)
    return str(caught.value)


def test_without_a_checkpoint_a_resumed_run_begins_again(enter, tmp_path):
    """Killed in its first steps: what was recorded has no state to stand on, so it goes, and step 0 is next."""
    with enter("run.steps=9", "run.save_every=9") as run:
        take_step(run, 0)
        shutil.copy(run.folder / "metrics.jsonl", tmp_path / "killed.jsonl")
    shutil.rmtree(run.folder / "checkpoints")                   # a SIGKILL would have written none
    assert (tmp_path / "killed.jsonl").read_text()
    again = enter("run.steps=9", "run.save_every=9", resume=True)
    assert next(iter(again.steps())) == 0 and lines(again) == []


@pytest.mark.parametrize("name", rest_slow([
    "optimizer.safetensors", "state.json", "adapter_model.safetensors", "adapter_config.json"]))
def test_a_checkpoint_with_a_bit_that_was_not_written_is_refused_and_the_one_before_is_used(enter, capsys, name):
    """Saved after 2 and after 4 steps; the second is spoilt. Steps 2 and 3 are made again, to the same bits."""
    with enter("run.steps=4") as run:
        for step in run.steps():
            take_step(run, step)
    end, moments, recorded = adapters(run), moments_of(run), lines(run)
    file = run.folder / "checkpoints/step-000004" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    capsys.readouterr()
    with enter("run.steps=4", resume=True) as again:
        assert again.done == 2 and [line["step"] for line in lines(again)] == [0, 1] and not same(adapters(again), end)
        for step in again.steps():
            take_step(again, step)
    assert f"step-000004 is not used: {name} is not what was written" in capsys.readouterr().err
    assert same(adapters(again), end) and [line["step"] for line in lines(again)] == [line["step"] for line in recorded]
    assert all(torch.equal(tensor, moments[name]) for name, tensor in moments_of(again).items())
    assert enter("run.steps=4", resume=True).done == 4                  # and now that one is whole


def test_a_torn_checkpoint_is_not_kept_in_the_place_of_the_sound_one(enter):
    """Saved after 2 and after 4 steps, the second torn. Resumed from 2, it is alone; saved after 3 and, on leaving, 5 steps."""
    with enter("run.steps=4") as run:
        for step in run.steps():
            take_step(run, step)
    (run.folder / "checkpoints/step-000004/optimizer.safetensors").write_bytes(b"")
    with enter("run.steps=5", "run.save_every=3", "run.evaluate_every=0", resume=True) as again:
        assert names(again) == ["step-000002"]
        for step in again.steps():
            take_step(again, step)
            assert set(names(again)) <= {"step-000002", "step-000003", "step-000005"}


@pytest.mark.parametrize("facts", [
    {}, {"evaluated": 0, "best": {"step": 2}, "dropped": {"count": 0, "first": ""}},
    {"evaluated": 0, "best": None, "dropped": {"count": 0}}])
def test_a_state_of_something_else_is_one_sentence(enter, facts):
    """Written as states are, with right checksums."""
    with enter("run.steps=2") as run:
        for step in run.steps():
            take_step(run, step)
    with write_state(run.folder / "checkpoints", 2, facts):
        pass
    with pytest.raises(ValueError, match="step-000002/state.json: expected a JSON object with "):
        enter("run.steps=2", resume=True)


def test_without_a_whole_checkpoint_there_is_no_resuming_and_the_records_stay(enter, tmp_path):
    with enter("run.steps=4") as run:
        for step in run.steps():
            take_step(run, step)
    before = lines(run)
    for folder in checkpoints(run.folder):
        (folder / "optimizer.safetensors").write_bytes(b"")
    assert refusal(enter, "run.steps=4", resume=True) == (
        f"{tmp_path}/run/checkpoints/step-000004 is not used: optimizer.safetensors is not what was written, by its checksum "
        f"in SHA256SUMS; no other in {tmp_path}/run/checkpoints can be used: to begin again, remove that folder")
    assert lines(run) == before


# --------------------------------------------------------------------------------------------------------------- leaving
def test_a_first_signal_lets_the_step_finish(enter, capsys):
    before = signal.getsignal(signal.SIGTERM)
    with enter("run.steps=9", "run.evaluate_every=0") as run:
        for step in run.steps():
            os.kill(os.getpid(), signal.SIGTERM)
            take_step(run, step)
    assert run.signal == signal.SIGTERM and names(run) == ["step-000001"]
    assert capsys.readouterr().out.count("stopping after this step") == 1
    assert signal.getsignal(signal.SIGTERM) == before                   # ours no more


def test_ctrl_c_that_was_ignored_stays_so(enter):
    """As in a script's background: it ends no step, and is none of the first signals. SIGTERM ends it as ever."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with enter("run.steps=9", "run.evaluate_every=0") as run:
            for step in run.steps():
                os.kill(os.getpid(), signal.SIGINT)
                if step == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                take_step(run, step)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert run.signal == signal.SIGTERM and run.done == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once_and_the_last_whole_step_is_saved(enter, number):
    with pytest.raises(SystemExit) as left, enter("run.steps=9") as run:
        take_step(run, 0)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), number)
        raise AssertionError("it went on")
    assert left.value.code == 128 + number and names(run) == ["step-000001"]


def test_a_step_in_the_middle_is_not_saved(enter):
    """Three steps are recorded, two are saved, the optimiser has moved a fourth time and nothing is recorded of it: to save
    that as three steps would be to take the fourth twice."""
    with pytest.raises(RuntimeError), enter("run.steps=9", "run.save_every=2") as run:
        take_step(run, 0)
        take_step(run, 1)
        saved = adapters(run)
        take_step(run, 2)
        run.optimizer.step()
        raise RuntimeError("in the middle")
    again = enter("run.steps=9", resume=True)
    assert again.done == 2 and same(adapters(again), saved) and [line["step"] for line in lines(again)] == [0, 1]


def test_an_error_saves_and_goes_on_as_itself(enter):
    with pytest.raises(OSError, match="^disk$"), enter("run.steps=9", "run.save_every=5") as run:
        take_step(run, 0)
        raise OSError("disk")
    assert names(run) == ["step-000001"]


def test_an_evaluation_is_due_once_and_again_where_it_was_not_done(enter):
    """evaluate_every = 2 of 3 steps: after 2 and after the last."""
    with enter("run.steps=3", "run.evaluate_every=2") as run:
        due = []
        for step in run.steps():
            take_step(run, step)
            due.append(run.evaluation_due())
    assert due == [False, True, True]
    again = enter("run.steps=3", "run.evaluate_every=2", resume=True)
    assert again.evaluation_due()
    with again:
        again.record_evaluation("dev", {"strict": 1.0, "ems": 0, "rems": 0, "error_rate": 0, "n": 1, "of": 1})
        assert not again.evaluation_due()
    assert not enter("run.steps=3", "run.evaluate_every=2", resume=True).evaluation_due()


# ------------------------------------------------------------------------------------------------------- what is not finite
def broken_step(run: Run, step: int) -> None:
    """As update leaves it: nothing has moved, and it says why."""
    broken = Update({"kl": 0.0, "grad_norm": float("nan"), "skipped": 1.0}, f"the loss, in {step}")
    run.record(step, [group(1)], [[0.0]], [broken], Clock())


SENTENCE = ("{} steps in a row moved nothing, since something in them was not finite, first in step {}: the loss, in {}; what "
            "was learned until then is saved")


def test_five_steps_in_a_row_that_are_not_finite_end_the_run_with_where_it_began(enter, capsys):
    """Step 0 is whole, 1 to 4 are not, 5 is; then 6 to 10 are five. All of them are on record and saved."""
    with pytest.raises(FloatingPointError) as caught, enter("run.steps=99", "run.save_every=50") as run:
        for step in run.steps():
            (take_step if step in (0, 5) else broken_step)(run, step)
    assert str(caught.value) == SENTENCE.format(5, 6, 6)
    assert names(run) == ["step-000011"] and [line["step"] for line in lines(run)] == [*range(11)]
    said = [line for line in capsys.readouterr().err.splitlines() if "moves nothing" in line]
    assert len(said) == 9 and said[0] == "step 1 moves nothing, something in it is not finite: the loss, in 1"


def test_a_resumed_run_knows_of_those_before_and_may_try_as_many_again(enter):
    """Three before it was stopped and two after are five; resumed after that, five more, and it still says where it began."""
    with enter("run.steps=3") as run:
        for step in run.steps():
            broken_step(run, step)
    for done in (5, 10):
        with pytest.raises(FloatingPointError) as caught, enter("run.steps=99", resume=True) as run:
            for step in run.steps():
                broken_step(run, step)
        assert run.done == done and str(caught.value) == SENTENCE.format(done, 0, 0)
    with enter("run.steps=15", resume=True) as run:
        take_step(run, 10)
        for step in run.steps():                            # 11 to 14: after one that was whole the count has begun anew
            broken_step(run, step)
    assert run.done == 15


# ----------------------------------------------------------------------------------------------------------------- reports
def looked(strict: float) -> tuple[list[dict], dict[str, dict]]:
    """What an evaluation of a split gives: rows, and their summary."""
    return [{"split": "heldout", "index": 0, "answer": "Õ\u2028", "strict": strict}], {"heldout": {"n": 1, "strict": strict}}


def unasked() -> tuple[list[dict], dict[str, dict]]:
    raise AssertionError("it was evaluated again")


def summary(run: Run) -> dict:
    return json.loads((run.folder / "summary.json").read_text())


def test_before_is_evaluated_once_and_after_when_there_are_steps_it_has_not_seen(enter):
    """Two steps, reported; resumed with nothing to do; resumed for a third."""
    with enter("run.steps=2") as run:
        assert run.report("before", lambda: looked(10.0)) == {"steps": 0, "before": {"heldout": {"n": 1, "strict": 10.0}}}
        for step in run.steps():
            take_step(run, step)
        run.report("after", lambda: looked(20.0))
    whole = {"steps": 2, "before": {"heldout": {"n": 1, "strict": 10.0}}, "after": {"heldout": {"n": 1, "strict": 20.0}}}
    assert summary(run) == whole
    assert lines(run, "before.jsonl") == looked(10.0)[0] and lines(run, "after.jsonl") == looked(20.0)[0]

    with enter("run.steps=2", resume=True) as run:
        assert run.report("before", unasked) == whole == run.report("after", unasked)
    with enter("run.steps=3", resume=True) as run:
        assert run.report("before", unasked) == whole
        for step in run.steps():
            take_step(run, step)
        assert run.report("after", lambda: looked(30.0)) == whole | {"steps": 3, "after": looked(30.0)[1]}
    assert lines(run, "before.jsonl") == looked(10.0)[0] and lines(run, "after.jsonl") == looked(30.0)[0]
    assert sorted(path.name for path in run.folder.iterdir() if "writing" in path.name) == []


def test_a_run_without_steps_has_a_before_and_an_after(enter):
    with enter("run.steps=0") as run:
        run.report("before", lambda: looked(10.0))
        assert run.report("after", lambda: looked(10.0)).keys() == {"steps", "before", "after"}


def test_a_report_asked_for_when_all_is_done_has_both_moments(enter):
    """Stopped before it could be made: the start policy is still at hand, so "before" is made up for."""
    with enter("run.steps=1", 'evaluation.report=["heldout"]') as run:
        take_step(run, 0)
    with enter("run.steps=1", 'evaluation.report=["heldout"]', resume=True) as run:
        run.report("before", lambda: looked(10.0))
        run.report("after", lambda: looked(20.0))
    assert summary(run) == {"steps": 1, "before": looked(10.0)[1], "after": looked(20.0)[1]}


def test_what_was_reported_of_a_run_that_made_no_step_is_not_the_next_ones(enter):
    """Stopped in its first step and started anew without --resume, with another seed: its "before" is of another start."""
    with enter("run.steps=1") as run:
        run.report("before", lambda: looked(10.0))
    with enter("run.steps=1", "run.seed=1") as run:
        assert run.report("before", lambda: looked(15.0))["before"] == looked(15.0)[1]
    assert lines(run, "before.jsonl") == looked(15.0)[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_signal_during_a_report_ends_at_once_and_it_is_made_up_for(enter, capsys, number, moment):
    """The first signal: in the loop it would let the step finish, here it leaves. The steps so far are saved; resumed, what
    was on record stays, and the report that was lost is done."""
    def stopped() -> tuple[list[dict], dict[str, dict]]:
        os.kill(os.getpid(), number)
        raise AssertionError("it went on")

    with pytest.raises(SystemExit) as left, enter("run.steps=2", "run.save_every=9") as run:
        if moment == "after":
            run.report("before", lambda: looked(10.0))
            for step in run.steps():
                take_step(run, step)
        run.report(moment, stopped)
    assert left.value.code == 128 + number and "stopping after this step" not in capsys.readouterr().out
    assert not (run.folder / f"{moment}.jsonl").exists()
    assert names(run) == (["step-000002"] if moment == "after" else [])
    if moment == "after":
        assert summary(run) == {"steps": 0, "before": looked(10.0)[1]}
    else:
        assert not (run.folder / "summary.json").exists()

    with enter("run.steps=2", resume=True) as run:
        assert run.done == (2 if moment == "after" else 0)
        run.report("before", unasked if moment == "after" else lambda: looked(10.0))
        for step in run.steps():
            take_step(run, step)
        run.report("after", lambda: looked(20.0))
    assert summary(run) == {"steps": 2, "before": looked(10.0)[1], "after": looked(20.0)[1]}


def test_a_signal_after_a_report_lets_the_step_finish_as_ever(enter):
    with enter("run.steps=9", "run.evaluate_every=0") as run:
        run.report("before", lambda: looked(10.0))
        for step in run.steps():
            os.kill(os.getpid(), signal.SIGTERM)
            take_step(run, step)
    assert run.signal == signal.SIGTERM and run.done == 1


def test_a_report_that_fails_leaves_the_record_as_it_was(enter):
    """A database that dies in the last evaluation: the steps are saved, "before" stands."""
    with pytest.raises(OSError, match="^gone$"), enter("run.steps=1") as run:
        run.report("before", lambda: looked(10.0))
        take_step(run, 0)
        run.report("after", lambda: (_ for _ in ()).throw(OSError("gone")))
    assert summary(run) == {"steps": 0, "before": looked(10.0)[1]} and names(run) == ["step-000001"]


@pytest.mark.parametrize("content", ["", '{"steps": 2, "before": {"hel', "[]", '{"after": {}}',
                                     '{"steps": 2, "before": {"heldout": 10.0}}', "[" * 10**5])
def test_a_summary_that_is_none_is_refused_with_its_name(enter, content):
    with enter("run.steps=1") as run:
        (run.folder / "summary.json").write_text(content)
        with pytest.raises(ValueError, match=f"^{run.folder}/summary.json: expected a JSON object with ") as caught:
            run.report("after", unasked)
    assert type(caught.value) is UserError and "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------- records
def test_a_sample_holds_whatever_a_database_returns(enter):
    """MariaDB gives Decimals for AVG and SUM, dates, times and bytes: none is JSON's, all are written as text."""
    cells = (Decimal("2.5000"), datetime.date(2012, 8, 1), datetime.timedelta(seconds=1), b"\xff", None, "Õ\u2028", 1.5)
    with enter("run.steps=1") as run:
        run.record(0, [group(*cells)], [[0.0]], REPORT, Clock())
    (sample,) = lines(run, "samples.jsonl")
    assert sample["rollouts"][0]["execution"]["rows"] == [["2.5000", "2012-08-01", "0:00:01", "b'\\xff'", None, "Õ\u2028", 1.5]]
    assert sample["question"]["text"] == "How many?" and sample["rollouts"][0]["sql"] == "SELECT 1"


def test_records_say_of_what_kind_they_are_and_samples_have_the_steps_advantages(enter):
    """A term of a user's own reward may be called as a split's figures are ("mine/strict"): a step's record stays one."""
    rollout = group(1).rollouts[0]
    verdict = dataclasses.replace(rollout.verdict, terms={**rollout.verdict.terms, "mine/strict": 1.0})
    mine = dataclasses.replace(group(1), rollouts=(dataclasses.replace(rollout, verdict=verdict),) * 2)
    summary = {"strict": 1.0, "ems": 0, "rems": 0, "error_rate": 0, "n": 1, "of": 1}
    with enter("run.steps=1") as run:
        run.record(0, [mine, mine], [[1.5, -1.5], [0.0, 0.0]], REPORT, Clock())
        run.record_evaluation("dev", {**summary, "kinds": {"a": {}}})
    step, evaluation = lines(run)
    assert (step["kind"], step["step"], step["terms/mine/strict"]) == ("step", 0, 1.0) and "split" not in step
    assert evaluation == {"kind": "evaluation", "split": "dev", "step": 0,
                          **{f"dev/{name}": value for name, value in summary.items()}}
    (sample,) = lines(run, "samples.jsonl")
    assert [rollout["advantage"] for rollout in sample["rollouts"]] == [1.5, -1.5]


def test_a_run_whose_records_do_not_say_their_kind_goes_on(enter):
    """As they were written before they did: an evaluation is what has no reward."""
    keys = ("run.steps=4", "run.evaluate_every=1", "run.save_every=1")
    with enter(*keys) as run:
        for step in (0, 1):
            take_step(run, step)
            run.record_evaluation("dev", {"strict": 1.0, "ems": 0, "rems": 0, "error_rate": 0, "n": 1, "of": 1})
    older = [{name: value for name, value in line.items() if name not in ("kind", "split")} for line in lines(run)]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*older, older[0] | {"step": 2}]))
    again = enter(*keys, resume=True)
    assert lines(again) == older and [line["step"] for line in older] == [0, 0, 1, 1]


def test_samples_come_every_so_often_or_never(enter, tmp_path):
    for every, expected in ((2, [0, 2]), (0, [])):
        with enter("run.steps=4", f"run.sample_every={every}", out=tmp_path / str(every)) as run:
            for step in run.steps():
                take_step(run, step)
        assert [line["step"] for line in lines(run, "samples.jsonl")] == expected


def test_a_shown_group_fits_the_screen_and_commands_no_terminal():
    """79 characters at most, nothing that moves a cursor or rings a bell; what does not fit is cut: the question after two
    lines, SQL after five, all else after one."""
    shown = show(group("x" * 500, sql="SELECT\n  '\x1b[2J\x07'\t, 1" + " FROM t" * 90, text="Wie viele? " * 20, count=3)).split("\n")
    assert len(shown) == 1 + 2 + 1 + 5 + 1
    assert all(len(line) <= 79 and line.isprintable() for line in shown)
    assert shown[0] == "train/0" and shown[2].endswith(" …") and shown[8].endswith(" …") and shown[9].endswith("…")
    assert shown[4].startswith("  1 × 3     SELECT '\ufffd[2J\ufffd' , 1 FROM t FROM t")


def test_what_was_written_twice_is_shown_once():
    two, one = group(2, sql="SELECT 2"), group(sql="SELECT 1 WHERE 0", count=2)
    mixed = dataclasses.replace(two, rollouts=(*one.rollouts, *two.rollouts))
    assert show(mixed) == """train/0
  question  How many?
  gold      1
  1 × 2     SELECT 1 WHERE 0
        →   nothing
  1 × 1     SELECT 2
        →   2"""


def test_the_longest_line_of_progress_fits_80_columns(monkeypatch):
    """Half a day, six digits of steps: what comes last is cut, what comes first is there."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with open(main, "rb"), open(terminal, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        bar = progress(100_000, "train", initial=99_999)
        bar.start_t -= 12 * 3600
        bar.set_postfix_str(headline({"reward": -11.625, "strict": 1.0, "kl": 1.23e-05, "error_rate": 1.0, "grad_norm": 1e-05}))
        line = str(bar)
        bar.close()
    assert len(line) <= 80 and "reward -11.62 strict 100% kl 1.2e-05" in line


def test_the_written_optimiser_state_is_float32_and_safetensors(enter):
    with enter("run.steps=1") as run:
        take_step(run, 0)
    tensors = load_tensors(checkpoints(run.folder)[0] / "optimizer.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
