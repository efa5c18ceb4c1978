"""A run's folder → a Markdown report with its pictures. Reads what a run wrote and loads no model.

    out/report.md                 what differs from the default config, tables, curves, samples
    out/report-splits.png         the report splits before and after, if the run came that far
    out/report-eval.png           what eval.py wrote to out/eval, if it did
    out/report-curves.png         the steps
    out/report-warmup.png         the warm-up, if it was made here

What a model wrote is untrusted text: the report puts it into indented blocks, which no text can close, or escapes Markdown's
signs.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from minigrpo import config
from minigrpo.common.console import labelled, printable, say
from minigrpo.common.grouping import group_by
from minigrpo.evaluation.figures import CEILINGS
from minigrpo.reports.plots import METRICS, plot_curves, plot_splits, plot_warmup, window_for
from minigrpo.reports.run_reader import Json, Records, Sample, Summary, phases, read_run
from minigrpo.task.contract import Task
from minigrpo.task.kinds import make_task

SAMPLES_SHOWN = 6                               # groups in a report


def report_run(cfg: config.Config) -> int:
    """The recipe of ``train.py --report``: the report of what is in ``run.out``."""
    config.require(cfg, "run.out")
    say(f"written: {write_report(Path(cfg.run.out))}")
    return 0


def write_report(folder: Path) -> Path:
    """Draw a run's pictures and write folder/report.md around them; returns the file."""
    run = read_run(folder)
    chosen = {dotted: value for dotted, value in config.flatten(run.cfg).items() if value != config.KEYS[dotted].default}
    parts = [f"# {_escaped(folder.resolve().name)}", _how_far(run),
             "## Config\n\nWhat differs from the defaults; all of it is in [config.toml](config.toml).\n\n"
             + _block([f"{dotted} = {json.dumps(value, ensure_ascii=False)}" for dotted, value in chosen.items()])]
    if run.moments:
        plot_splits(run.moments, folder / "report-splits.png")
        parts.append("## Splits\n\n" + _SPLITS + "\n\n![splits](report-splits.png)\n\n" + split_table(run.moments))
    if run.evaluated:
        plot_splits({"eval.py": run.evaluated}, folder / "report-eval.png")
        parts.append("## What eval.py wrote to [eval](eval/summary.json)\n\n![evaluation](report-eval.png)\n\n"
                     + split_table({"eval.py": run.evaluated}))
    if run.steps:
        plot_curves(run, folder / "report-curves.png")
        parts.append(f"## Steps\n\n{_BOLD.format(window_for(len(run.steps)))}\n\n![curves](report-curves.png)\n\n"
                     + phase_table(run.steps))
    if run.warmup:
        plot_warmup(run, folder / "report-warmup.png")
        parts.append(f"## Warm-up\n\n{_BOLD.format(window_for(len(run.warmup)))}\n\n![warm-up](report-warmup.png)")
    if run.samples:
        shown = spread_out(run.samples, SAMPLES_SHOWN)
        parts.append(f"## Samples\n\n{len(shown)} of the {len(run.samples)} groups in [samples.jsonl](samples.jsonl), the "
                     "first and the last among them. Candidates with the same SQL stand together. What is long ends in “…”.")
        task = make_task(run.cfg)
        parts += [_sample(sample, task) for sample in shown]
    file = folder / "report.md"
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return file


_SPLITS = "In percent. blind: what one constant answer for each kind of question would score."
_BOLD = ("Faint: every step, but for the few far above the line. Bold: the centred moving median over {} steps (of shares in "
         "percent, the mean). Scores of evaluations are as they are.")


def _how_far(run: Records) -> str:
    if not run.steps:
        return (f"No step of GRPO is on record, {len(run.warmup)} of the warm-up." if run.warmup else
                "No step is on record.")
    done, wanted = run.steps[-1]["step"] + 1, run.cfg.run.steps
    reached = f"{done} steps, all of them" if done >= wanted else f"Stopped after {done} of {wanted} steps"
    return f"{reached}, {run.seconds()[-1]:.0f} seconds of steps."


def spread_out(items: Sequence[Sample], most: int) -> list[Sample]:
    """At most ``most`` of them, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def split_table(moments: Mapping[str, Summary]) -> str:
    """One line a split; before → after if there are both, and the interval if there is one."""
    last = list(moments.values())[-1]
    names = dict.fromkeys(name for line in last.values() for name, value in line.items()
                          if type(value) in (int, float) and name not in ("n", "of"))

    def figure(line: Mapping, name: str) -> str:
        if type(line.get(name)) not in (int, float):
            return ""
        low_high = line.get("interval", {}).get(name)
        return f"{line[name]:.1f}" + (f" [{low_high[0]:.1f}, {low_high[1]:.1f}]" if low_high else "")

    def cell(split: str, name: str) -> str:
        figures = [figure(summary.get(split, {}), name) for summary in moments.values()]
        return figures[-1] if name in CEILINGS else " → ".join(filter(None, figures))

    return _table([["split", "questions", *(METRICS.get(name) or _escaped(name) for name in names)],
                   *([_escaped(split), "absent" if line.get("absent") else f"{line['n']} of {line['of']}",
                      *(cell(split, name) for name in names)] for split, line in last.items())])


def phase_table(steps: Sequence[Json]) -> str:
    """Seconds of a step by phase: the median, and the share of all the time."""
    spent = {phase: [phases(record).get(phase, 0.0) for record in steps] for phase in phases(steps[0])}
    total = sum(map(sum, spent.values()))
    return _table([["phase", "median, seconds a step", "part of all"],
                   *([_escaped(phase), f"{median(seconds):.3g}", f"{sum(seconds) / total:.1%}"]
                     for phase, seconds in spent.items()),
                   ["all", f"{median(map(sum, zip(*spent.values()))):.3g}", "100 %"]])


def _sample(sample: Sample, task: Task) -> str:
    """A group: its question, and each different candidate with its reward, its terms, its advantage, and what it gave."""
    lines = [*labelled("question", sample.question["text"], 5), *labelled("gold", sample.question["answer"], 5)]
    for extracted, (first, *others) in group_by(sample.candidates, lambda candidate: candidate.verdict.extracted).items():
        verdict = first.verdict
        advantage = "" if first.advantage is None else f"advantage {first.advantage:+.2f} · "
        terms = " ".join(f"{name}={value:g}" for name, value in verdict.terms.items())
        written = ("text", first.text) if extracted is None else (task.language.upper(), extracted)
        lines += ["", *labelled("reward", f"{verdict.reward:g} · {advantage}{1 + len(others)} of {len(sample.candidates)} · "
                                          f"{terms}", 5), *labelled(*written, 12), *task.show(verdict)]
    return f"### Step {sample.step}: {_escaped(sample.question['id'])}\n\n{_block(lines)}"


def _block(lines: Sequence[str]) -> str:
    """Lines as an indented block, which ends at a line that is not indented; here all are."""
    return "\n".join("    " + line for line in lines)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def _escaped(text: str) -> str:
    """Text on one line, escaped so that nothing in it is Markdown or HTML.

    >>> print(_escaped("a|b <i>"))
    a\\|b \\<i\\>
    """
    return re.sub(r"([\\`*_{}\[\]()<>#|~&!$])", r"\\\1", printable(text))
