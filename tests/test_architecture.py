"""The walls of the house as a table of rooms: who may import whom, and where a library or a device may be named."""

import ast
import re
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGE = sorted((ROOT / "minigrpo").rglob("*.py"))
RECIPES = [ROOT / "train.py", ROOT / "eval.py"]
MODEL = {"policy", "policy/fast", "policy/files", "policy/generation"}
SQL = {"task/sql", "task/sql/data", "task/sql/engines"}
STEP = {"config", "grpo", "rollout", "batch", "update"}

# A room (a folder, or a file at the top) → the rooms that it may import besides itself. Who is not here may not be there.
ROOMS: dict[str, set[str]] = {
    "common": set(),
    "config": {"common"},
    # The mathematics, the model and the task do not know each other.
    "grpo": {"common"},
    "policy": {"common", "policy/fast", "policy/files"},
    "policy/generation": {"common", "policy", "policy/fast"},
    "policy/fast": {"common"},
    "policy/files": {"common", "policy"},
    "task": {"common", "config", "task/sql", "task/sql/engines"},
    "task/sql": {"common", "config", "task", "task/sql/data", "task/sql/engines"},
    "task/sql/data": {"common", "task/sql", "task/sql/engines"},
    "task/sql/engines": {"common"},
    # One step.
    "rollout": {"common", "config", "task"} | MODEL,
    "batch": {"common", "config", "grpo", "rollout"} | MODEL,
    "update": {"common", "config", "grpo", "batch"} | MODEL,
    # What surrounds it.
    "evaluation": {"common", "config", "rollout", "task"} | MODEL,
    "training": {"common", "evaluation", "task"} | STEP | MODEL,
    "reports": {"common", "config", "evaluation", "task"},
    "experiments": {"common", "config", "evaluation", "reports", "task", "training"} | SQL,
    "planning": {"common", "config", "batch", "task", "training"} | MODEL,
}
THIRD_PARTY = {"torch", "safetensors", "tokenizers", "huggingface_hub", "pymysql", "tqdm", "matplotlib"}


def name_of(file: Path) -> str:
    """"grpo", "task/sql/answer", ...: a file without its ending, a folder's own file as the folder."""
    return file.relative_to(ROOT / "minigrpo").with_suffix("").as_posix().removesuffix("/__init__")


def room_of(name: str) -> str:
    return name if "/" not in name else name.rpartition("/")[0]


@cache
def imports(file: Path) -> set[str]:
    """Dotted names that a file imports: "torch", "minigrpo.task.sql.answer", ..."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # "from minigrpo.task.sql.engines import sqlite" names a module, "from minigrpo.config import Run" a thing in one.
            found |= {name if (ROOT / (name.replace(".", "/") + ".py")).exists() else str(node.module) for name in names}
    return found


def ours(file: Path) -> set[str]:
    """The files of the package that a file imports: "grpo", "task/sql/answer", ..."""
    return {name.removeprefix("minigrpo.").replace(".", "/") for name in imports(file) if name.startswith("minigrpo.")}


def users_of(library: str) -> list[str]:
    return [name_of(file) for file in PACKAGE if any(name.split(".")[0] == library for name in imports(file))]


def test_the_reader_of_imports_sees_what_is_there():
    # rollout.py imports the config module, the search and the clock, and torch: three ways of writing it.
    assert {"config", "policy/generation/search", "common/clock"} <= ours(ROOT / "minigrpo/rollout.py")
    assert "torch" in imports(ROOT / "minigrpo/rollout.py")


def test_every_file_is_in_a_room_and_imports_only_what_its_room_may():
    for file in PACKAGE:
        if file.name == "__init__.py":
            assert not ours(file), file                     # a folder's own file only says what the folder is for
            continue
        room = room_of(name_of(file))
        assert room in ROOMS, f"{file} is in no room of the table"
        for other in ours(file):
            assert room_of(other) in ROOMS[room] | {room}, f"{name_of(file)} imports {other}"


def test_the_mathematics_knows_shapes_alone():
    assert ours(ROOT / "minigrpo/grpo.py") == {"common/shapes"}


def test_the_contract_is_all_that_the_rest_knows_of_a_task():
    """But for the experiments, which study the rewards of the SQL task."""
    door = {"task/contract", "task/kinds", "task/stream"}
    for file in PACKAGE:
        name = name_of(file)
        if not name.startswith(("task/", "experiments/")):
            assert {other for other in ours(file) if other.startswith("task/")} <= door, name
    for name in ("contract", "stream"):
        assert all(other.startswith("common/") or other == "task/contract"
                   for other in ours(ROOT / f"minigrpo/task/{name}.py")), name


def test_the_model_and_the_task_never_meet():
    for file in PACKAGE:
        if room_of(name_of(file)) in MODEL:
            assert not any(name.startswith(("task", "config", "grpo")) for name in ours(file)), file
        if room_of(name_of(file)) in SQL | {"task"}:
            assert not any(name.startswith(("policy", "grpo")) for name in ours(file)), file
            assert "torch" not in {name.split(".")[0] for name in imports(file)}, file


def test_no_file_imports_itself_through_others():
    tuple(TopologicalSorter({name_of(file): ours(file) for file in PACKAGE}).static_order())     # CycleError names a circle


def test_every_file_has_its_tests():
    for file in PACKAGE:
        if file.name != "__init__.py":
            place = file.relative_to(ROOT / "minigrpo")
            assert (ROOT / "tests" / place.with_name(f"test_{place.name}")).exists(), place


def test_the_map_of_the_package_names_every_file():
    drawn = (ROOT / "minigrpo/README.md").read_text(encoding="utf-8").split("```")[1]
    named = sorted(word for word in drawn.split() if word.endswith(".py"))
    assert named == sorted(file.name for file in PACKAGE if file.name != "__init__.py")


def test_nobody_imports_the_recipes():
    for file in PACKAGE:
        assert not imports(file) & {"train", "eval"}, file


@pytest.mark.parametrize("library, home", [
    ("tokenizers", "policy/tokenizer"), ("safetensors", "policy/files/weights"), ("huggingface_hub", "policy/files/hub"),
    ("sqlite3", "task/sql/engines/sqlite"), ("tqdm", "common/console"), ("matplotlib", "reports/plots")])
def test_a_library_is_named_in_one_file(library, home):
    assert users_of(library) == [home]


def test_the_client_of_mariadb_is_named_where_queries_run_and_where_they_are_prepared():
    assert users_of("pymysql") == [f"task/sql/engines/{name}" for name in ("mariadb", "mariadb_driver", "mariadb_setup")]


def test_nothing_is_unpickled_or_run_as_code_and_nothing_undeclared_is_imported():
    for file in [*PACKAGE, *RECIPES]:
        roots = {name.split(".")[0] for name in imports(file)}
        assert not roots & {"pickle", "shelve", "marshal", "dill", "joblib"}, file
        assert roots <= THIRD_PARTY | {"minigrpo"} | set(sys.stdlib_module_names), (file, roots)
        assert not {"torch.load", "torch.save", "eval", "exec", "compile", "__import__", "ast.literal_eval", "os.system",
                    "os.popen"} & set(calls(file)), file


@cache
def calls(file: Path) -> list[str]:
    return [ast.unparse(node.func) for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)]


def test_one_place_for_console_randomness_and_devices():
    for file in PACKAGE:
        name, text = name_of(file), file.read_text(encoding="utf-8")
        assert "print" not in calls(file), name
        assert "torch.manual_seed" not in calls(file), name
        cuda = ("common/device", "policy/fast/replay")
        assert not any(call.startswith("torch.cuda") for call in calls(file)) or name in cuda, name
        assert '"cuda' not in text or name in (*cuda, "config"), name


# The tokenizers library raises nothing more specific than Exception for a file that is none; a user's own reward may raise
# whatever there is.
BARE = {"policy/tokenizer", "task/sql/reward"}


def test_every_except_names_its_class():
    for file in [*PACKAGE, *RECIPES]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                named = {ast.unparse(part) for part in getattr(node.type, "elts", [node.type])} if node.type else set()
                bare = not named or named & {"Exception", "BaseException"}
                assert not bare or (file in PACKAGE and name_of(file) in BARE), (file.name, node.lineno)


def test_each_file_that_serves_speed_alone_says_what_it_replaces_and_which_test_shows_that_nothing_else_changes():
    for file in PACKAGE:
        if room_of(name_of(file)) != "policy/fast" or file.name == "__init__.py":
            continue
        said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        assert "\nReplaces: " in said and "\nFaster because: " in said, file
        proofs = re.findall(r"(tests/[\w/]+\.py)::(\w+)", said)
        assert proofs, file
        for place, name in proofs:
            assert f"\ndef {name}(" in (ROOT / place).read_text(encoding="utf-8"), (file, name)
