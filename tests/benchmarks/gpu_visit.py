"""One visit to a GPU: its clock, the children that measure, and the results, written as they come. See gpu.py."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minigrpo.common.files import write_whole
from minigrpo.evaluation.compare import show_comparison
from minigrpo.evaluation.figures import LABELS, markdown
from tests.paths import ROOT

Figures = dict[str, Any]
GRACE = 20.0                    # seconds between SIGTERM and SIGKILL
LOOK_EVERY = 5.0                # seconds between looks at what a running child has written


class Visit:
    """The clock, the results so far, and what the command line says."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out, self.end = args, Path(args.out).resolve(), time.monotonic() + 60 * args.minutes
        self.out.mkdir(parents=True, exist_ok=True)
        file = self.out / "results.json"
        self.results: Figures = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"parts": {}}
        self.results |= {"machine": machine(args.device), "date": time.strftime("%Y-%m-%d"),
                         "commands": [*self.results.get("commands", []), " ".join(sys.argv[1:])]}

    def left(self) -> float:
        return self.end - time.monotonic()

    def found(self, part: str) -> Figures:
        return self.results["parts"].setdefault(part, {})

    def record(self, part: str, **figures: object) -> None:
        """Add figures to a part's, and write all that is known so far; nothing is written where nothing is new."""
        found = self.found(part)
        if any(name not in found or found[name] != value for name, value in figures.items()):
            found |= figures
            write_whole(self.out / "results.json", (json.dumps(self.results, indent=1) + "\n").encode())
            write_whole(self.out / "results.md", show(self.results).encode())

    def run(self, part: str, log: str, command: Iterable[object], until: Callable[[], float],
            look: Callable[[], None] = lambda: None) -> int:
        """Run a child until ``until()`` at most; returns its exit status. ``look`` is called now and then, and at the end."""
        (self.out / part).mkdir(exist_ok=True)
        with (self.out / part / log).open("ab") as file:
            child = subprocess.Popen(list(map(str, command)), stdout=file, stderr=subprocess.STDOUT, cwd=ROOT,
                                     env=environment(), start_new_session=True)
            try:
                looked = 0.0
                while child.poll() is None and time.monotonic() < until():
                    if time.monotonic() > looked + LOOK_EVERY:
                        look()
                        looked = time.monotonic()
                    time.sleep(0.1)
            finally:                                    # also where this program itself is told to end
                end(child)
                look()
        return child.returncode


def end(child: subprocess.Popen) -> None:
    """SIGTERM to the child alone, which may save; then SIGKILL to it and all that it started."""
    try:
        child.terminate()
        child.wait(GRACE)
    except subprocess.TimeoutExpired:
        print(f"pid {child.pid} did not end in {GRACE:g} s and is killed", flush=True)
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass                                            # the usual case: nobody is left
    child.wait()


def environment() -> dict[str, str]:
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1",
                         "TOKENIZERS_PARALLELISM": "false"}


def machine(device: str) -> str:
    if device == "cpu":
        return f"{os.cpu_count()} CPU cores, torch {version('torch')}"
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return f"{subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()}, torch {version('torch')}"


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def show(results: Figures) -> str:
    """All figures as Markdown."""
    lines = ["# Measurements", f"{results['date']}, {results['machine']}"]
    for part, found in results["parts"].items():
        if found:
            error = f": {found['error']}" if found.get("error") else ""
            body = show_cases(found) if "cases" in found else show_learning(found)
            lines += [f"## {part}", f"{found.get('status', 'not over yet')}{error}", *body]
    return "\n\n".join(lines) + "\n"


def show_learning(found: Figures) -> list[str]:
    lines = []
    if "difference" in found:
        lines.append("A: before GRPO; B: after it.\n\n" + show_comparison(found["difference"], markdown))
    elif "before" in found:
        for split, of in found["before"].items():
            cells = [[LABELS[name].name, f"{of[name]:.1f}", "{:.1f} to {:.1f}".format(*ends)]
                     for name, ends in of.get("interval", {}).items()]
            lines.append(markdown([[f"{split}, {of['n']} questions", "before", "95 %"], *cells]))
    if found.get("steps"):
        phases = ", ".join(f"{phase} {seconds:.3f}" for phase, seconds in found["seconds"].items())
        curve = ", ".join(f"{step}: {strict:.1f}" for step, strict in found["curve"])
        memory = f"memory at most {found['peak_bytes'] / 1e9:.1f} GB"
        lines.append(f"{found['steps']} steps; seconds a step (medians): {phases}; {memory}."
                     + (f" Strict on dev after step {curve}." if curve else ""))
    return lines


def show_cases(found: Figures) -> list[str]:
    """A case a column; of step.py a phase a line, of the tests an outcome a line."""
    of = {name: case["found"] for name, case in found["cases"].items()}
    cells: dict[str, dict[str, str]] = {}
    for name, case in of.items():
        for row in case if isinstance(case, list) else []:
            memory = f", {row['peak_bytes'] / 1e9:.1f} GB" if row["peak_bytes"] else ""
            cells.setdefault(row["phase"], {})[name] = f"{row['median_s'] * 1e3:.1f} ms{memory}"
        for outcome, count in case.items() if isinstance(case, dict) else []:
            cells.setdefault(outcome, {})[name] = str(count)
    if "planned" in found:
        cells["planned memory"] = {name: f"{size / 1e9:.1f} GB" for name, size in found["planned"].items()}
    faults = [f"{name}: {case['status']}. {case['error']}".strip() for name, case in found["cases"].items()
              if case["status"] != "done"]
    return [markdown([["", *of], *([label, *(by.get(name, "") for name in of)] for label, by in cells.items())]), *faults]
