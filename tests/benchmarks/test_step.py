"""The benchmark of a step runs, alone and beside its peers, and says what it promises. How fast anything is, no test asks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minigrpo.policy.tokenizer import train_bpe
from minigrpo.task.sql.data.temptabqa import load_questions
from tests.compiler import needs_compiler
from tests.paths import MINI

STEP = Path(__file__).parent / "step.py"
OURS = ["prefill", "generate (beam)", "decode one token (beam)", "generate (sample)", "decode one token (sample)",
        "products of one token", "SQL", "reference", "update", "step"]
THEIRS = {"transformers": OURS[:5], "peft": ["reference", "update"], "trl": ["step"]}


@pytest.mark.slow
@pytest.mark.parametrize("switch, who", [
    ("--peers", {"minigrpo": OURS} | THEIRS), ("--checkpointing", {"minigrpo": OURS}),
    pytest.param("--fuse", {"minigrpo": OURS}, marks=needs_compiler)])
def test_each_phase_has_its_row_for_all_who_take_part(tmp_path, switch, who):
    """4 questions, 2 candidates of 32 tokens each: nobody may have written fewer than 256 tokens, or stopped early."""
    command = [sys.executable, STEP, "--device", "cpu", "--model", "tiny", switch, "--json", tmp_path / "step.json"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads((tmp_path / "step.json").read_text())["rows"]
    found = {}
    for row in rows:
        found.setdefault(row["who"], []).append(row["phase"])
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]
        assert not row["phase"].startswith(("generate", "step")) or row["tokens"] == 4 * 2 * 32
        assert row["phase"] != "step" or row["peak_bytes"] > 0
        assert f"{row['phase']:26} {row['who']} " in ended.stdout
    assert found == who


@pytest.mark.slow
def test_real_prompts_share_a_root_and_both_sides_get_the_same(tmp_path):
    """Three questions of the tests' data in a tokenizer of 400 ids: TRL's side asserts that its ids are the ones given to it."""
    questions = [question.text for question in load_questions(MINI, "train")]
    (tmp_path / "tokenizer.json").write_text(train_bpe([*questions, *"CREATE TABLE Athlete (\n  name TEXT\n);"], 400).to_str())
    command = [sys.executable, STEP, "--device", "cpu", "--model", "tiny", "--questions", "3", "--prompts", MINI, "--tokenizer",
               tmp_path, "--peers", "--json", tmp_path / "step.json"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "step.json").read_text())
    assert {row["who"] for row in found["rows"]} == {"minigrpo", "trl"} and found["work"]["prompts"] == 3
    assert all(row["tokens"] == 3 * 2 * 32 for row in found["rows"] if row["phase"] == "step")
