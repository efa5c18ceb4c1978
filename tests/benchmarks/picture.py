"""The picture of the project's README: how a run learns, beside one group of candidates with rows, rewards and advantages.

    python train.py configs/quickstart.toml --set run.evaluate_every=10 --set run.sample_every=5
    python -m tests.benchmarks.picture runs/quickstart .github/assets/quickstart.png

Reads what the run wrote and loads no model.
"""

import argparse
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib
from matplotlib.axes import Axes
from PIL import Image

from minigrpo.common.errors import UserError
from minigrpo.reports.plots import COLOURS, percent_axis, picture, smooth, window_for
from minigrpo.reports.run_reader import Records, Sample, read_run, series
from minigrpo.task.sql.engines.database import Execution

BLUE, RED, GREEN, BLACK, SKY = (COLOURS[i] for i in (0, 1, 2, 4, 5))
GREY = "0.55"
HEIGHT, DPI, PALETTE = 3.55, 210, 96            # inches; 1680 pixels wide, twice what GitHub shows; few colours: a small file
FONT = 7.1                                      # points of the group's text
SQL_WIDTH, ROWS_WIDTH = 48, 12                  # characters
REWARD_END, ADVANTAGE_END = 69, 80              # columns where the two numbers end, counted in characters
LINES = 24.6                                    # of text that fit


def draw(folder: Path, file: Path) -> None:
    """Draw the run in ``folder`` as ``file``."""
    run = read_run(folder)
    with picture(file, HEIGHT) as figure:
        matplotlib.rcParams["savefig.dpi"] = DPI                # until the file is written
        curve, group = figure.subplots(1, 2, width_ratios=(10, 19))
        draw_curve(curve, run)
        draw_group(group, telling_group(run.samples))
    with Image.open(file) as drawn:
        drawn.convert("RGB").quantize(PALETTE, kmeans=1).save(file, optimize=True)     # rare colours keep their tone


def draw_curve(axes: Axes, run: Records) -> None:
    """Percent right over the steps: of the greedy answers at each evaluation, and of all candidates at each step."""
    split, count = run.cfg.evaluation.split, run.cfg.generation.completions
    steps, greedy = run.curve(split)
    looks = series([record for record in run.warmup if "strict" in record], "strict")
    if looks:                                   # the last look of the warm-up sees the model that GRPO starts from
        steps, greedy = [0, *steps], [looks[-1], *greedy]
    numbers, candidates = run.curve("")
    mean = smooth(candidates, window_for(len(candidates)), fmean)
    axes.plot(numbers, candidates, ".", color=SKY, markersize=2.5, alpha=0.6)
    axes.plot(numbers, mean, color=SKY, linewidth=1.8)
    axes.plot(steps, greedy, "o-", color=BLUE, markersize=3.5, linewidth=1.8, clip_on=False)
    for line, color, text in ((greedy[len(greedy) // 2:], BLUE, f"greedy answers\n({split} questions)"),
                              (mean, SKY, f"all {count} candidates\n(training questions)")):
        axes.text(numbers[-1], min(line) - 8, text, color=color, ha="right", va="top", fontsize=8, fontweight="bold",
                  in_layout=False)
    percent_axis(axes)
    axes.set_xlabel("GRPO steps")
    axes.set_title("Right answers, %")


def telling_group(samples: Sequence[Sample]) -> Sample:
    """The group with the most different statuses, then the most different rewards; of several the one with the least SQL."""
    def told(sample: Sample) -> tuple[int, int, int]:
        verdicts = [candidate.verdict for candidate in sample.candidates]
        return (len({verdict.status for verdict in verdicts}), len({verdict.reward for verdict in verdicts}),
                -sum(len(candidate.text) for candidate in sample.candidates))

    return max(samples, key=told)


def draw_group(axes: Axes, sample: Sample) -> None:
    """A question, and a row for each candidate: SQL, what it returned, reward, advantage. What all share is grey."""
    question, candidates = sample.question, sample.candidates
    axes.set_axis_off()
    axes.set_xlim(0, ADVANTAGE_END)
    axes.set_ylim(LINES, 0)
    axes.set_title(f"One group of step {sample.step}: {len(candidates)} candidates for one question")

    def write(column: float, line: float, text: str, color: str = BLACK, ha: str = "left", weight: str = "normal") -> None:
        axes.text(column, line, text, color=color, ha=ha, va="top", fontsize=FONT, family="monospace", fontweight=weight,
                  in_layout=False)

    for line, (name, text) in enumerate((("question", question["text"]), ("known answer", question["answer"]))):
        write(0, line, name, GREY)
        write(14, line, textwrap.shorten(text, ADVANTAGE_END - 14, placeholder="…"), weight="bold")
    for column, name, ha in ((0, "SQL", "left"), (SQL_WIDTH + 2, "rows", "left"), (REWARD_END, "reward", "right"),
                             (ADVANTAGE_END, "advantage", "right")):
        write(column, 2.7, name, GREY, ha)
    axes.axhline(3.9, color="0.8", linewidth=0.8)
    written = [candidate.verdict.extracted or candidate.text for candidate in candidates]
    shared = len(os.path.commonprefix([text.split() for text in written]))
    top = 4.3
    for candidate, text in zip(candidates, written):
        if candidate.advantage is None:
            raise UserError(f"the group of step {sample.step} has no advantages on record: train anew for a picture")
        lines, color = sql_lines(text, shared), GREEN if candidate.advantage > 0 else RED
        for line, (common, own) in enumerate(lines):
            write(0, top + line, common, GREY)
            write(0, top + line, " " * len(common) + own)
        write(SQL_WIDTH + 2, top, returned(candidate.verdict.details), color)
        write(REWARD_END, top, signed(f"{candidate.verdict.reward:.0f}"), ha="right")
        write(ADVANTAGE_END, top, signed(f"{candidate.advantage:+.2f}"), color, "right", "bold")
        top += len(lines) + 0.7


def sql_lines(sql: str, shared: int) -> list[tuple[str, str]]:
    """SQL in lines of at most ``SQL_WIDTH`` characters, each cut in two: its part of the first ``shared`` words, and the rest.

    >>> sql_lines("SELECT a FROM t", 2)
    [('SELECT a', ' FROM t')]
    """
    lines = []
    for line in textwrap.wrap(sql, SQL_WIDTH, break_on_hyphens=False):
        words = line.split(" ")
        common = " ".join(words[:max(shared, 0)])
        lines.append((common, line[len(common):]))
        shared -= len(words)
    return lines


def signed(number: str) -> str:
    """A number with a minus sign in place of a hyphen."""
    return number.replace("-", "−")


def returned(execution: Execution) -> str:
    """The first cell, or the kind of error."""
    if not execution.ok:
        return execution.status.replace("_", " ") + " error" * (execution.status == "syntax")
    if not execution.rows:
        return "no rows"
    return textwrap.shorten(str(execution.rows[0][0]), ROWS_WIDTH, placeholder="…")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the picture of the README from a run's folder.")
    parser.add_argument("folder", type=Path, help="a run's folder, run.out")
    parser.add_argument("file", type=Path, help="the PNG file to write")
    args = parser.parse_args()
    args.file.parent.mkdir(parents=True, exist_ok=True)
    draw(args.folder, args.file)


if __name__ == "__main__":
    main()
