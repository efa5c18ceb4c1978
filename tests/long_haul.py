"""A long run, watched from outside: does anything grow that should not?

``python -m tests.long_haul [STEPS] [section.key=value ...]`` trains the quickstart's model on a private MariaDB with two
candidates a question, looks at the program and its server twice a second, and prints as Markdown, for each eighth of the run,
what they held at most; then how large the files are. It exits with 1 where something grew.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.paths import ROOT
from tests.processes import command_lines

EIGHTHS = 8
# From one half of the run to the other: memory in MB (allocators keep what they once had), and counts: each of the four that
# ask at once gets its thread and its connection when it is first needed.
MAY_GROW = {"our MB": 15, "files": 4, "threads": 4, "server MB": 15, "server files": 4, "connections": 4}


@dataclass(frozen=True)
class Look:
    """What the program and its server held when ``step`` steps were on record."""

    step: int
    held: dict[str, int]


def watch(overrides: Sequence[str], out: Path, pause: float = 0.5) -> Iterator[Look]:
    """Train, and look every ``pause`` seconds while steps are taken. ``RuntimeError``: the run fails."""
    settings = ["database.engine=mariadb", f"run.out={out}", *overrides]
    command = [sys.executable, str(ROOT / "train.py"), str(ROOT / "configs/quickstart.toml"),
               *(word for setting in settings for word in ("--set", setting))]
    with (out.parent / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as program:
        while program.poll() is None:
            time.sleep(pause)
            step = steps_done(out)
            server = server_of(program.pid)
            if step and server and (look := _look(step, program.pid, server)):
                yield look
    if program.returncode:
        said = (out.parent / "log").read_text(errors="replace")[-500:]
        raise RuntimeError(f"the run ended with {program.returncode}: {said}")


def steps_done(out: Path) -> int:
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b'"reward":') if file.exists() else 0


def server_of(program: int) -> int | None:
    """The mariadbd under the keeper that the program started."""
    keepers = {pid for pid, line in command_lines().items() if "minigrpo-keeper" in line and _parent(pid) == program}
    servers = [pid for pid, line in command_lines().items() if "--datadir=" in line and _parent(pid) in keepers]
    return servers[0] if servers else None


def _parent(pid: int) -> int | None:
    return _status(pid).get("PPid")


def _status(pid: int) -> dict[str, int]:
    """The numbers in /proc/PID/status, none if it has ended: PPid, Threads, VmRSS in kB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    pairs = (line.split()[:2] for line in lines if len(line.split()) > 1)
    return {name.rstrip(":"): int(value) for name, value in pairs if value.isdigit()}


def _look(step: int, program: int, server: int) -> Look | None:
    try:
        files, server_files = (os.listdir(f"/proc/{pid}/fd") for pid in (program, server))
        sockets = [name for name in server_files if os.readlink(f"/proc/{server}/fd/{name}").startswith("socket:")]
    except (FileNotFoundError, ProcessLookupError):
        return None                                         # one of them has just ended
    ours, theirs = _status(program), _status(server)
    return Look(step, {"our MB": ours["VmRSS"] // 1024, "files": len(files), "threads": ours["Threads"],
                       "server MB": theirs["VmRSS"] // 1024, "server files": len(server_files), "connections": len(sockets)})


def eighths(looks: Sequence[Look], steps: int) -> list[dict[str, int]]:
    """The most that was held in each eighth of the steps."""
    parts = [[look.held for look in looks if (look.step - 1) * EIGHTHS // steps == part] for part in range(EIGHTHS)]
    return [{name: max(held[name] for held in part) for name in MAY_GROW} for part in parts if part]


def grown(parts: Sequence[dict[str, int]]) -> dict[str, int]:
    """What more was held in the second half than in the first, where it is more than may be."""
    half = len(parts) // 2
    more = {name: max(part[name] for part in parts[half:]) - max(part[name] for part in parts[:half]) for name in MAY_GROW}
    return {name: by for name, by in more.items() if by > MAY_GROW[name]}


def sizes(out: Path) -> dict[str, int]:
    """Bytes of each file and folder of a run."""
    return {place.name: sum(file.stat().st_size for file in (place, *place.rglob("*")) if file.is_file())
            for place in sorted(out.iterdir())}


def main(steps: int, overrides: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        looks = list(watch([f"run.steps={steps}", "run.evaluate_every=0", "run.sample_every=50", "evaluation.report=[]",
                            "generation.completions=2", *overrides], out))
        parts = eighths(looks, steps)
        lines = [f"| {i + 1} | " + " | ".join(str(part[name]) for name in MAY_GROW) + " |" for i, part in enumerate(parts)]
        sys.stdout.write("\n".join([f"| eighth of {steps} steps | " + " | ".join(MAY_GROW) + " |",
                                    "|" + "---|" * (len(MAY_GROW) + 1), *lines]))
        sys.stdout.write(f"\n\n{json.dumps(sizes(out))}\n")
        if more := grown(parts):
            sys.stdout.write(f"grew in the second half: {more}\n")
        return int(bool(more))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000, sys.argv[2:]))
