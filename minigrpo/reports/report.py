"""A run's folder → a Markdown report with its pictures. Reads what a run wrote and loads no model.

    out/report.md                 what differs from the default config, tables, curves, samples
    out/report-splits.png         the report splits before and after, where the run came that far
    out/report-eval.png           what eval.py wrote to out/eval, if it did
    out/report-curves.png         the steps
    out/report-warmup.png         the warm-up, where it was made here

In what a run wrote anything may stand: in the report it stands in indented blocks, which no text can close, or with
Markdown's signs escaped.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from minigrpo import config
from minigrpo.batch import advantages
from minigrpo.common.console import labelled, printable, say
from minigrpo.evaluation.ask import gave
from minigrpo.evaluation.compare import CEILINGS
from minigrpo.reports.plots import METRICS, plot_curves, plot_splits, plot_warmup, window_for
from minigrpo.reports.run_reader import Json, Records, Summary, phases, read_run
from minigrpo.task.sql.engines.database import Execution

SAMPLES = 6                                     # groups shown in a report


def report_run(cfg: config.Config) -> int:
    """The recipe of ``train.py --report``: the report of what is in ``run.out``."""
    config.require(cfg, "run.out")
    say(f"written: {write_report(Path(cfg.run.out))}")
    return 0


def write_report(folder: Path) -> Path:
    """Draw a run's pictures and write folder/report.md around them; the file."""
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
        shown = spread_out(run.samples, SAMPLES)
        parts.append(f"## Samples\n\n{len(shown)} of the {len(run.samples)} groups in [samples.jsonl](samples.jsonl), the "
                     "first and the last among them. Candidates with the same SQL stand together. What is long ends in “…”.")
        parts += [_sample(sample, run.cfg.grpo) for sample in shown]
    file = folder / "report.md"
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return file


_SPLITS = "In percent. blind: what one constant answer for each kind of question would score."
_BOLD = "Faint: every step. Bold, and areas: the centred moving median over {} steps (of shares in percent, the mean)."


def _how_far(run: Records) -> str:
    if not run.steps:
        return (f"No step of GRPO is on record, {len(run.warmup)} of the warm-up." if run.warmup else
                "No step is on record.")
    done, wanted = run.steps[-1]["step"] + 1, run.cfg.run.steps
    reached = f"{done} steps, all of them" if done >= wanted else f"Stopped after {done} of {wanted} steps"
    return f"{reached}, {run.seconds()[-1]:.0f} seconds of steps."


def spread_out(items: Sequence[Json], most: int) -> list[Json]:
    """At most ``most`` of them, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def split_table(moments: Mapping[str, Summary]) -> str:
    """A split a line; before → after where there are both, and the interval where there is one."""
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
    """Where the seconds of a step go: each phase's median and its part of all the time."""
    spent = {phase: [phases(record).get(phase, 0.0) for record in steps] for phase in phases(steps[0])}
    total = sum(map(sum, spent.values()))
    return _table([["phase", "median, seconds a step", "part of all"],
                   *([_escaped(phase), f"{median(seconds):.3g}", f"{sum(seconds) / total:.1%}"]
                     for phase, seconds in spent.items()),
                   ["all", f"{median(map(sum, zip(*spent.values()))):.3g}", "100 %"]])


def _sample(sample: Json, grpo: config.GRPO) -> str:
    """A group: its question, and each different SQL with its reward, its terms, its advantage, and what it gave."""
    rollouts, question = sample["rollouts"], sample["question"]
    advantage_K = advantages([[rollout["reward"]["total"] for rollout in rollouts]], grpo)[0].tolist()
    alike: dict[str | None, list[int]] = {}
    for k, rollout in enumerate(rollouts):
        alike.setdefault(rollout["sql"], []).append(k)
    lines = [*labelled("question", question["text"], 5), *labelled("gold", question["answer"], 5)]
    for sql, (k, *others) in alike.items():
        reward, execution = rollouts[k]["reward"], rollouts[k]["execution"]
        terms = " ".join(f"{name}={value:g}" for name, value in reward["terms"].items())
        ran = Execution(execution["status"], tuple(map(tuple, execution["rows"])), tuple(execution["columns"]),
                        error=execution["error"])
        lines += ["", *labelled("reward", f"{reward['total']:g} · advantage {advantage_K[k]:+.2f} · {1 + len(others)} of "
                                          f"{len(rollouts)} · {terms}", 5),
                  *labelled("text" if sql is None else "SQL", rollouts[k]["text"] if sql is None else sql, 12), *gave(ran)]
    return f"### Step {sample['step']}: {_escaped(question['id'])}\n\n{_block(lines)}"


def _block(lines: Sequence[str]) -> str:
    """Lines as they are: an indented block ends at a line that is not indented, and none of these is."""
    return "\n".join("    " + line for line in lines)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def _escaped(text: str) -> str:
    """Text on one line in which nothing is Markdown or HTML.

    >>> print(_escaped("a|b <i>"))
    a\\|b \\<i\\>
    """
    return re.sub(r"([\\`*_{}\[\]()<>#|~&!$])", r"\\\1", printable(text))
