"""The real benchmark, which is not part of the repository: the folder that MINIGRPO_TEMPTABQA names, else data/TEMPTABQA-C."""

import os
from pathlib import Path

import pytest

from tests.paths import ROOT

BENCHMARK = Path(os.environ.get("MINIGRPO_TEMPTABQA") or ROOT / "data/TEMPTABQA-C")
HERE = BENCHMARK.is_dir()
WITH_GOLD = (BENCHMARK / "gold_sql.jsonl").is_file()           # the published benchmark has no gold SQL
WHY = "the benchmark is not here (set MINIGRPO_TEMPTABQA)"
WHY_GOLD = "the benchmark with gold SQL is not here (set MINIGRPO_TEMPTABQA)"
needs_benchmark = pytest.mark.skipif(not HERE, reason=WHY)
needs_gold = pytest.mark.skipif(not WITH_GOLD, reason=WHY_GOLD)
