"""The visit to a GPU, rehearsed: its clock, what a child that is ended leaves, and what is made of half-written records."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.benchmarks import gpu, gpu_visit
from tests.paths import ROOT

OBSTINATE = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
time.sleep(60)
"""


def visit_to(folder, **options) -> gpu_visit.Visit:
    given = {"out": folder, "minutes": 10.0, "device": "cpu", "rehearse": False, "repeat": False, "grpo_minutes": float("inf")}
    return gpu_visit.Visit(argparse.Namespace(**given | options))


def is_running(pid: int) -> bool:
    """Also false for a process that has ended and that nobody has waited for."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --------------------------------------------------------------------------------------------------------------- children
def test_a_child_that_ignores_sigterm_is_killed_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_visit, "GRACE", 0.2)
    log = tmp_path / "part/log"

    def until_the_grandchild_is_there() -> float:
        return time.monotonic() + (-1 if log.read_text() else 60)

    status = visit_to(tmp_path).run("part", "log", [sys.executable, "-c", OBSTINATE], until_the_grandchild_is_there)
    assert status == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while is_running(int(log.read_text())):                 # SIGKILL takes a moment
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_child_that_ends_in_time_is_looked_at_a_last_time(tmp_path):
    seen = []
    status = visit_to(tmp_path).run("part", "log", [sys.executable, "-c", "print(6 * 7); raise SystemExit(3)"],
                                    lambda: time.monotonic() + 60, lambda: seen.append((tmp_path / "part/log").read_text()))
    assert status == 3 and seen[-1] == "42\n"


def test_every_new_figure_is_on_disk_and_a_later_visit_finds_it(tmp_path):
    visit = visit_to(tmp_path)
    visit.record("learn", steps=3, seconds={"update": 0.25}, curve=[[2, 12.5]], peak_bytes=10**9)
    assert json.loads((tmp_path / "results.json").read_text())["parts"]["learn"]["steps"] == 3
    assert "3 steps; seconds a step (medians): update 0.250" in (tmp_path / "results.md").read_text()
    (tmp_path / "results.md").unlink()
    visit.record("learn", steps=3)
    assert not (tmp_path / "results.md").exists()           # nothing was new
    assert visit_to(tmp_path).found("learn")["curve"] == [[2, 12.5]]


# ------------------------------------------------------------------------------------------------------------- the clock
def test_a_part_leaves_later_ones_their_usual_minutes_and_is_skipped_without_its_least(tmp_path, monkeypatch, capsys):
    """Ten minutes. a: all but b's usual 2 and c's usual 3 are 5. b: as a takes no time, all but c's 3 are 7. c needs 11."""
    given = {}

    def work(visit, name, stop):
        given[name] = (stop - time.monotonic()) / 60
        visit.record(name, status="done")

    monkeypatch.setattr(gpu, "PARTS", {"a": gpu.Part(work, 1, 4), "b": gpu.Part(work, 1, 2), "c": gpu.Part(work, 11, 3)})
    monkeypatch.setattr(gpu_visit, "show", lambda results: "")
    gpu.visit_all(visit_to(tmp_path, parts=["a", "b", "c"]))
    assert given == {"a": pytest.approx(5, abs=0.02), "b": pytest.approx(7, abs=0.02)}
    assert "c: skipped, it needs 660 s and 600 s are left" in capsys.readouterr().out
    given.clear()
    gpu.visit_all(visit_to(tmp_path, parts=["a", "b"]))                     # both are done
    assert given == {}
    gpu.visit_all(visit_to(tmp_path, parts=["b"], repeat=True))
    assert set(given) == {"b"}


def test_grpo_stops_in_time_for_an_evaluation_as_long_as_the_one_before_it(tmp_path):
    """The first evaluation took 10 s, from the base to its rows: 30 s for loading and 15 s before the end are kept."""
    run, stop = tmp_path / "run", time.monotonic() + 100
    (run / "base").mkdir(parents=True)
    until = gpu.grpo_end(visit_to(tmp_path), run, stop)
    assert until() == stop                                                  # the warm-up
    for name, made in {"base/config.json": 1000, "before.jsonl": 1010, "summary.json": 1010}.items():
        (run / name).write_text("{}")
        os.utime(run / name, (made, made))
    assert until() == pytest.approx(stop - gpu.START - 15)
    assert gpu.grpo_end(visit_to(tmp_path, grpo_minutes=0.1), run, stop)() == pytest.approx(time.monotonic() + 6, abs=0.5)


# ----------------------------------------------------------------------------------------------------- half-written records
def test_the_records_of_a_run_under_way_are_read_up_to_its_last_whole_line(tmp_path):
    """Medians of 1, 2 and 9 seconds, and of a phase that only one of three steps had."""
    steps = [{"kind": "step", "step": i, "seconds/update": seconds, "memory/peak_bytes": 10 * i}
             for i, seconds in enumerate((1, 2, 9))]
    steps[0]["seconds/old"] = 5
    look = {"kind": "evaluation", "step": 1, "split": "dev", "dev/strict": 37.5}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (*steps, look)) + '{"kind": "st')
    assert gpu.progress(tmp_path) == {"steps": 3, "seconds": {"old": 0.0, "update": 2}, "peak_bytes": 20, "curve": [[2, 37.5]]}
    assert gpu.progress(tmp_path / "elsewhere") == {}


def test_logs_that_break_off_still_count(tmp_path):
    log = tmp_path / "log"
    log.write_text("tests/a.py::test_x[cuda-llama] PASSED  [ 12%]\ntests/a.py::test_x[cuda-gemma] FAILED [ 25%]\n"
                   "tests/a.py::test_y[1] PASSED   [ 37%]\nFAILED tests/a.py::test_x[cuda-gemma]\ntests/a.py::test_z[")
    assert gpu.counts(log) == {"passed": 2, "failed": 1}
    log.write_text('a warning\n{"phase": "prefill", "median_s": 0.5}\n{"phase": "upd')
    assert gpu.rows(log) == [{"phase": "prefill", "median_s": 0.5}]


def test_the_plan_beside_a_measured_step_is_smaller_with_checkpointing():
    assert 0 < gpu.planned("tiny", "cpu", True) < gpu.planned("tiny", "cpu", False)


# ------------------------------------------------------------------------------------------------------------- all of it
@pytest.mark.slow
def test_a_rehearsal_learns_measures_and_goes_on_where_it_was_killed(tmp_path):
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--rehearse", "--device", "cpu", "--out", str(tmp_path),
               "--minutes", "5", "--parts", "learn,small,beams", "--grpo-minutes", "0.05", "--set", "database.engine=sqlite"]
    first = subprocess.Popen(command, cwd=ROOT)
    while not (tmp_path / "learn/run/summary.json").exists():               # the first evaluation is over, GRPO begins
        assert first.poll() is None
        time.sleep(0.2)
    first.terminate()
    assert first.wait() == 143
    assert "before" in json.loads((tmp_path / "results.json").read_text())["parts"]["learn"]
    subprocess.run(command, cwd=ROOT, check=True)
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {"learn": "done", "small": "done", "beams": "done"}
    for name in ("learn", "beams"):
        assert parts[name]["steps"] > 0
        assert set(parts[name]["difference"]) == set(parts[name]["after"]) == {"original", "counterfactual"}
    assert {row["phase"] for row in parts["small"]["cases"]["fuse"]["found"]} >= {"prefill", "update", "step"}
    assert "| step |" in (tmp_path / "results.md").read_text()
