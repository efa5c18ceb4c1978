"""report.py: what stands in a run's report, that no text of a run gets out of its place, and train.py --report."""

import json
import re
from pathlib import Path
from statistics import fmean, pstdev

import pytest

from minigrpo.config import load_config
from minigrpo.reports.report import phase_table, split_table, spread_out, write_report
from minigrpo.reports.run_reader import read_run
from tests.run_folders import evaluation, line, rollout, sample, step, write_run

HOSTILE = "a|b `x` ```\n</pre><script>alert(1)</script>\n# head\n\n\n- ![i](http://x) $y$ \x1b[2J\u202e" + "Z" * 10_000


def report_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def flush_left(text: str) -> list[str]:
    """The lines in which Markdown is Markdown: those that no block's four spaces stand in front of."""
    return [found for found in text.split("\n") if found and not found.startswith("    ")]


# --------------------------------------------------------------------------------------------------------- what is in it
def test_a_whole_run(tmp_path):
    text = report_of(write_run(
        tmp_path / "mine", config="[run]\nsteps = 2\n", warmup=[{"step": 0, "loss": 7.0, "grad_norm": 1.0}],
        metrics=[step(0), step(1), evaluation(1, 60.0)], samples=[sample(0, rollout(1.0, "SELECT 1"))],
        summary={"steps": 2, "before": {"dev": line(30.0)}, "after": {"dev": line(60.0)}}, evaluated={"small": line(50.0)}))
    assert [heading for heading in flush_left(text) if heading.startswith("#")] == [
        "# mine", "## Config", "## Splits", "## What eval.py wrote to [eval](eval/summary.json)", "## Steps", "## Warm-up",
        "## Samples", "### Step 0: train/3"]
    assert "2 steps, all of them, 6 seconds of steps." in text
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert pictures == ["report-splits.png", "report-eval.png", "report-curves.png", "report-warmup.png"]
    assert all((tmp_path / "mine" / name).stat().st_size > 5000 for name in pictures)


def test_only_what_differs_from_the_defaults_is_listed(tmp_path):
    """8 questions a step are the default; 2 steps are not."""
    text = report_of(write_run(tmp_path / "run", config="[run]\nsteps = 2\n[grpo]\nquestions = 8\n", metrics=[step(0)]))
    assert [found.strip() for found in text.split("\n") if found.startswith("    ")] == ["run.steps = 2"]
    assert "[config.toml](config.toml)" in text


@pytest.mark.parametrize("parts, says", [
    ({"metrics": [step(0)]}, "Stopped after 1 of 100 steps, 3 seconds of steps."),
    ({"warmup": [{"step": 0, "loss": 7.0, "grad_norm": 1.0}]}, "No step of GRPO is on record, 1 of the warm-up."),
    ({"evaluated": {"small": line(50.0)}}, "No step is on record.")])
def test_a_run_that_is_not_finished_says_how_far_it_came_and_has_no_empty_section(tmp_path, parts, says):
    text = report_of(write_run(tmp_path / "run", **parts))
    assert says in text
    assert text.count("\n## ") == 2 and text.count("![") == 1       # the config, and the one thing that there is


def test_a_table_has_before_and_after_and_the_interval():
    before, after = line(34.9), line(92.6, interval={"strict": [90.04, 95.0]}, hack_rate=1.5)
    head, _, row = split_table({"before": {"dev": before}, "after": {"dev": after}}).split("\n")
    assert head == "| split | questions | strict | EMS | REMS | errors | hack\\_rate |"
    assert row == "| dev | 10 of 10 | 34.9 → 92.6 [90.0, 95.0] | 34.9 → 92.6 | 34.9 → 92.6 | 20.0 → 20.0 | 1.5 |"


def test_an_empty_split_has_an_empty_row():
    table = split_table({"after": {"dev": line(50.0), "none": {"n": 0, "of": 0}, "hard": {"n": 0, "of": 0, "absent": True}}})
    assert table.split("\n")[3:] == ["| none | 0 of 0 |  |  |  |  |", "| hard | absent |  |  |  |  |"]


def test_what_luck_would_score_is_said_once():
    """No training changes it; what the policy scores is said before and after."""
    table = split_table({"before": {"dev": line(30.0, blind=28.4)}, "after": {"dev": line(60.0, blind=28.4)}})
    assert table.endswith("| 20.0 → 20.0 | 28.4 |")


def test_where_the_seconds_of_a_step_go(tmp_path):
    """Generating took 2, 2 and 5 seconds, updating 1 each: 9 and 3 of 12 in all; the medians are 2 and 1."""
    run = read_run(write_run(tmp_path / "run", metrics=[step(0), step(1), step(2, **{"seconds/generate": 5.0})]))
    assert phase_table(run.steps).split("\n")[2:] == [
        "| generate | 2 | 75.0% |", "| update | 1 | 25.0% |", "| all | 3 | 100 % |"]


# ---------------------------------------------------------------------------------------------------------------- samples
def test_a_sample_shows_question_answer_sql_rows_reward_and_advantage(tmp_path):
    """Equal SQL is shown once."""
    group = sample(5, rollout(1.0, "SELECT 1", -0.707), rollout(1.0, "SELECT 1", -0.707),
                   rollout(4.0, "SELECT 7", 1.414, rows=[[7, "seven"]]))
    text = report_of(write_run(tmp_path / "run", metrics=[step(0)], samples=[group]))
    assert "### Step 5: train/3" in text
    lines = [" ".join(found.split()) for found in text.partition("### Step 5")[2].split("\n")]
    assert lines[2:] == ["question How many?", "gold 7", "",
                         "reward 1 · advantage -0.71 · 2 of 3 · runs=1 strict=0", "SQL SELECT 1", "gave n name", "7 x", "",
                         "reward 4 · advantage +1.41 · 1 of 3 · runs=1 strict=1", "SQL SELECT 7", "gave n name", "7 seven", ""]


@pytest.mark.parametrize("scale", ["group", "none"])
def test_advantages_are_those_that_were_recorded(tmp_path, scale):
    """Rewards 1 and 4 would give ∓1, unscaled ∓1.5: what the run trained on may be other numbers, such as those of an advantage
    of one's own, and the report says what is on record."""
    group = sample(0, rollout(1.0, "SELECT 1", 0.25), rollout(4.0, "SELECT 7", -3.5))
    text = report_of(write_run(tmp_path / "run", config=f'[grpo]\nscale = "{scale}"\n', metrics=[step(0)], samples=[group]))
    assert re.findall(r"reward +(\S+) · advantage (\S+) ·", text) == [("1", "+0.25"), ("4", "-3.50")]


def test_a_group_whose_advantages_are_not_on_record_is_shown_without(tmp_path):
    group = sample(0, rollout(1.0, "SELECT 1"), rollout(4.0, "SELECT 7"))
    text = report_of(write_run(tmp_path / "run", metrics=[step(0)], samples=[group]))
    assert "advantage" not in text and re.findall(r"reward +(.*)\n", text) == [
        "1 · 1 of 2 · runs=1 strict=0", "4 · 1 of 2 · runs=1 strict=1"]


@pytest.mark.parametrize("scale", ["group", "none"])
def test_a_run_records_and_reports_the_advantages_of_its_own_scale(train_recipe, small_toml, tmp_path, scale):
    """(r − mean) / (σ + 1e-4), or r − mean; equal rewards have an advantage of 0."""
    out = tmp_path / "run"
    keys = [f"run.out={out}", "run.steps=2", "run.sample_every=1", "run.evaluate_every=0", f"grpo.scale={scale}"]
    assert train_recipe.train(load_config(small_toml, keys)) == 0
    shown = re.findall(r" · advantage (\S+) ·", report_of(out))
    for record in map(json.loads, (out / "samples.jsonl").read_text().splitlines()):
        rewards = [candidate["reward"]["total"] for candidate in record["rollouts"]]
        unit = pstdev(rewards) + 1e-4 if scale == "group" else 1.0
        for candidate, reward in zip(record["rollouts"], rewards):
            assert candidate["advantage"] == pytest.approx((reward - fmean(rewards)) / unit, abs=1e-9)
            assert f"{candidate['advantage']:+.2f}" in shown


def test_equal_rewards_have_no_advantage(tmp_path):
    text = report_of(write_run(tmp_path / "run", metrics=[step(0)], samples=[sample(0, rollout(0.01, "SELECT 1", 0.0))]))
    assert "advantage +0.00" in text


def test_text_without_sql_and_errors_are_shown(tmp_path):
    group = sample(0, rollout(-100.0, None, status="no_sql", rows=[], columns=[]),
                   rollout(-100.0, "SELECT x", status="unknown_column", rows=[], columns=[], error="no such column: x"))
    text = report_of(write_run(tmp_path / "run", metrics=[step(0)], samples=[group]))
    assert re.search(r"text +said None\n +gave +no_sql", text) and "unknown_column: no such column: x" in text


def test_no_text_of_a_run_gets_out_of_its_block(tmp_path):
    """The same run twice, with harmless texts and with hostile ones: outside of the indented blocks both reports are the same
    lines; and each block ends within a screen, with a mark where something was cut."""
    def skeleton(name: str, text: str) -> list[str]:
        group = sample(0, rollout(1.0, text, rows=[[text, None]], columns=["a", text]),
                       rollout(-100.0, "SELECT " + text, status="other", rows=[], columns=[], error=text),
                       rollout(-100.0, None, status="no_sql", rows=[], columns=[]), text=text, answer=text)
        group["rollouts"][2]["text"] = text
        folder = write_run(tmp_path / name / "run", metrics=[step(0)], samples=[group])
        found = report_of(folder)
        assert len(found.split("\n")) < 120 and max(map(len, found.split("\n"))) < 200
        assert "\x1b" not in found and "\u202e" not in found
        assert ("…" in found.partition("### ")[2]) == (len(text) > 1000)
        return flush_left(found)

    assert skeleton("tame", "fine") == skeleton("hostile", HOSTILE)


def test_names_in_headings_and_tables_are_escaped(tmp_path):
    """A split is named by a user's file. In a cell every bar that is not the table's own has a backslash in front."""
    name = "a|b<i>`c`[d](e)"
    group = sample(0, rollout(1.0, "SELECT 1"), id=f"{name}/0")
    text = report_of(write_run(tmp_path / "run", metrics=[step(0)], samples=[group],
                               summary={"steps": 1, "before": {name: line(1.0)}, "after": {name: line(2.0)}}))
    row = next(found for found in text.split("\n") if "10 of 10" in found)
    assert len(re.findall(r"(?<!\\)\|", row)) == 7                      # six columns
    for shown in (row, next(found for found in text.split("\n") if found.startswith("### "))):
        assert not re.search(r"(?<!\\)[<>`\[\]()]", shown)


def test_few_samples_are_shown_whole_and_many_from_first_to_last(tmp_path):
    assert spread_out([{"n": n} for n in range(3)], 6) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert spread_out([{"n": n} for n in range(101)], 6) == [{"n": n} for n in (0, 20, 40, 60, 80, 100)]


@pytest.mark.slow
def test_a_report_is_made_anew(tmp_path):
    folder = write_run(tmp_path / "run", metrics=[step(0)])
    assert report_of(folder) == report_of(folder)


# ---------------------------------------------------------------------------------------------------------------- recipe
@pytest.mark.slow
def test_train_reports_a_stopped_run_without_its_model_and_again_when_it_has_gone_on(cli, train_recipe, tmp_path):
    out = ("--set", f"run.out={tmp_path / 'run'}")
    assert cli(train_recipe, *out, "--set", "run.steps=2").status == 0
    ended = cli(train_recipe, *out, "--set", "model.path=no/such/model", "--report")
    assert (ended.status, ended.out) == (0, f"written: {tmp_path / 'run' / 'report.md'}\n")
    text = (tmp_path / "run/report.md").read_text(encoding="utf-8")
    assert "2 steps, all of them" in text and "### Step 0: train/" in text and "advantage" in text
    assert cli(train_recipe, *out, "--set", "run.steps=4", "--resume").status == 0
    assert cli(train_recipe, *out, "--report").status == 0
    assert "4 steps, all of them" in (tmp_path / "run/report.md").read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_one_sentence(cli, train_recipe, tmp_path):
    ended = cli(train_recipe, "--set", f"run.out={tmp_path / 'none'}", "--report")
    assert ended.status == 1
    assert ended.err == f"train.py: {tmp_path / 'none'} holds no run: there is no config.toml in it\n"
