"""The benchmark runs, and measures every phase of everybody. No time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "step.py"


@pytest.mark.slow
def test_the_smallest_model_is_measured_beside_all_peers(tmp_path):
    """4 questions of 64 tokens, 2 completions of 32 tokens each: everybody writes 4 · 2 · 32 = 256 tokens, or the script ends with
    an error. Generation is ours and transformers', the update ours and peft's, the whole step ours and trl's."""
    ended = subprocess.run([sys.executable, SCRIPT, "--device", "cpu", "--model", "tiny", "--peers", "--json", tmp_path / "out.json"],
                           capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    who = {}
    for row in rows:
        who.setdefault(row["phase"], set()).add(row["who"])
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]
        assert row.get("tokens") == 256 or not row["phase"].startswith(("generate", "step"))
    assert who["step"] == {"minigrpo", "trl"} and who["update"] == who["reference"] == {"minigrpo", "peft"}
    assert who["generate (beam)"] == who["generate (sample)"] == who["prefill"] == {"minigrpo", "transformers"}
    assert who["SQL"] == {"minigrpo"} and all(row["peak_bytes"] > 0 for row in rows if row["phase"] == "step")
    assert all(phase in ended.stdout for phase in who)
