"""long_haul.py: what it would call grown, and a short run that it watches."""

import pytest

from tests.long_haul import MAY_GROW, Look, eighths, grown, sizes, watch
from tests.mariadb_server import needs_mariadb
from tests.test_quickstart import SHORT

FLAT = dict.fromkeys(MAY_GROW, 10)


def test_an_eighth_has_the_most_that_was_held_in_it():
    """Of 16 steps the first eighth is steps 1 and 2, the last 15 and 16."""
    looks = [Look(step, FLAT | {"files": held}) for step, held in ((1, 5), (2, 9), (3, 4), (16, 7))]
    assert [part["files"] for part in eighths(looks, 16)] == [9, 4, 7]


def test_five_files_more_or_twenty_megabytes_are_growth_and_one_or_a_few_megabytes_are_not():
    def run(**last: int) -> dict[str, int]:
        return grown([FLAT, FLAT, FLAT, FLAT | last])
    assert run() == {} and run(**{"our MB": 20}) == {}
    assert run(files=11) == {} and run(files=15) == {"files": 5} and run(**{"server MB": 30}) == {"server MB": 20}


@pytest.mark.slow
@needs_mariadb
def test_nothing_grows_in_some_hundred_steps(tmp_path):
    """Files: a record a step of some 2 kB; two checkpoints and the best."""
    steps = 160
    overrides = [*SHORT, f"run.steps={steps}", "run.evaluate_every=0", "evaluation.report=[]", "generation.completions=2"]
    parts = eighths(list(watch(overrides, tmp_path / "run", pause=0.1)), steps)
    assert len(parts) == 8 and grown(parts) == {}
    assert parts[-1]["connections"] > 0 and sizes(tmp_path / "run")["metrics.jsonl"] < 2500 * steps
    assert len(list((tmp_path / "run/checkpoints").iterdir())) <= 3
