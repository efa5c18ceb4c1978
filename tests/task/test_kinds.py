"""``task.kind`` → the task."""

import pytest

from minigrpo.common.errors import UserError
from minigrpo.config import load_config
from minigrpo.task.kinds import TASKS, make_task
from minigrpo.task.sql.task import SQLTask
from tests.paths import ROOT


def test_every_data_set_of_the_sql_task_is_a_kind():
    for kind in ("temptabqa", "athletes", "jsonl"):
        assert isinstance(make_task(load_config(ROOT / "configs/quickstart.toml", [f"task.kind={kind}"])), SQLTask)


def test_an_unknown_kind_is_one_sentence_with_the_nearest():
    cfg = load_config(ROOT / "configs/quickstart.toml", ["task.kind=athlete"])
    with pytest.raises(UserError) as caught:
        make_task(cfg)
    assert str(caught.value) == f"task.kind: unknown kind 'athlete' (did you mean 'athletes'?); there are {', '.join(TASKS)}"
