"""``task.kind`` → the task, and a run's problems by their use."""

import pytest

from minigrpo.common.errors import UserError
from minigrpo.config import load_config
from minigrpo.task.kinds import TASKS, load_data, make_task
from minigrpo.task.sql.task import SQLTask
from tests.paths import MINI, ROOT


def test_every_data_set_of_the_sql_task_is_a_kind():
    for kind in ("temptabqa", "athletes", "jsonl"):
        assert isinstance(make_task(load_config(ROOT / "configs/quickstart.toml", [f"task.kind={kind}"])), SQLTask)


def test_an_unknown_kind_is_one_sentence_with_the_nearest():
    cfg = load_config(ROOT / "configs/quickstart.toml", ["task.kind=athlete"])
    with pytest.raises(UserError) as caught:
        make_task(cfg)
    assert str(caught.value) == f"task.kind: unknown kind 'athlete' (did you mean 'athletes'?); there are {', '.join(TASKS)}"


def data(*overrides: str):
    cfg = load_config(ROOT / "configs/quickstart.toml", overrides)
    return load_data(cfg, make_task(cfg))


def test_each_use_has_its_problems():
    """The quickstart trains on train, is evaluated on dev and reports two splits; all of them have prompts to be checked."""
    found = data("evaluation.questions=7")
    assert {problem.split for problem in found.train} == {"train"} and {problem.split for problem in found.dev} == {"dev"}
    assert found.asked == found.dev[:7] and list(found.report) == ["heldout", "counterfactual"]
    assert len(found.all) == len(found.train) + len(found.dev) + sum(map(len, found.report.values()))
    assert data().asked == data().dev                       # 0 questions: all of them


def test_a_kind_that_is_held_out_is_not_trained_on_and_still_evaluated():
    kind = data().train[0].kind
    found = data(f'task.hold_out=["{kind}"]')
    assert kind not in {problem.kind for problem in found.train} and kind in {problem.kind for problem in found.dev}


def test_solutions_come_from_the_warm_ups_source_or_from_the_rewards():
    """The athletes bring theirs along; the benchmark's are in a file, which a warm-up or a reward names."""
    for overrides in ((), ('warmup.source=""', "reward.gold_sql=athletes")):
        assert sum(problem.solution is not None for problem in data(*overrides).train) == 1670
    benchmark, gold = ("task.kind=temptabqa", f"task.path={MINI}", "evaluation.report=[]"), MINI / "gold_sql.jsonl"
    for source, reward in ((gold, ""), ("", gold), (gold, gold)):
        train = data(*benchmark, f'warmup.source="{source}"', f'reward.gold_sql="{reward}"').train
        assert train and all(problem.solution for problem in train)
    assert not any(problem.solution for problem in data(*benchmark, 'warmup.source=""').train)
