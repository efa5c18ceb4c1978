"""Where things lie in the repository, for tests in any folder."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests/data"
MINI = DATA / "temptabqa_mini"
SHOP = DATA / "shop"
