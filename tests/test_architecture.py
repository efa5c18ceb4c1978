"""The walls of the house: who may import whom, and where a library or a device may be named. Read from the sources."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "minigrpo").rglob("*.py"))
RECIPES = [ROOT / "train.py", ROOT / "eval.py"]
LAYER_0 = {"shapes", "config", "runtime", "metrics", "files", "lines", "states"}
# Layer 2, each after those it may import.
LAYER_2 = ["rollout", "batch", "update", "intervals", "evaluate", "tables", "warmup", "start", "assemble", "run", "ask", "plan",
           "dry_run", "records", "pictures", "comparison", "report", "experiments"]
THIRD_PARTY = {"torch", "safetensors", "tokenizers", "huggingface_hub", "pymysql", "tqdm", "matplotlib"}


def room(file: Path) -> str:
    return file.relative_to(ROOT / "minigrpo").with_suffix("").as_posix()


def imports(file: Path) -> set[str]:
    """Dotted names a file imports, relative ones resolved: "torch", "minigrpo.task.answer", ..."""
    package = file.relative_to(ROOT).parent.as_posix().replace("/", ".")
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package if node.level else "", node.module or ""]))
            names = {f"{base}.{alias.name}" for alias in node.names}
            # "from minigrpo.task import sqlite" names a module, "from minigrpo.config import Run" a thing in one.
            found |= {name if (ROOT / (name.replace(".", "/") + ".py")).exists() else base for name in names}
    return found


def ours(file: Path) -> set[str]:
    """The rooms of the package that a file imports: "grpo", "task/answer", ..."""
    return {name.removeprefix("minigrpo.").replace(".", "/") for name in imports(file) if name.startswith("minigrpo.")}


def users_of(library: str) -> list[str]:
    return [room(file) for file in PACKAGE if any(name.split(".")[0] == library for name in imports(file))]


def test_the_reader_of_imports_sees_what_is_there():
    # rollout.py imports the config module, the search and the database contract, and torch: four ways of writing it.
    assert {"config", "policy/search", "task/database"} <= ours(ROOT / "minigrpo/rollout.py")
    assert "torch" in imports(ROOT / "minigrpo/rollout.py")


def test_task_and_policy_and_mathematics_do_not_know_each_other():
    """Of layer 0 the policy knows how a wrong shape is said; policy and task how JSON from anywhere is read. No more."""
    for file in PACKAGE:
        name, used = room(file), ours(file)
        if name.startswith("task/"):
            assert all(other.startswith("task/") or other == "lines" for other in used), (name, used)
        elif name.startswith("policy/"):
            assert all(other.startswith("policy/") or other in ("shapes", "lines") for other in used), (name, used)
        elif name == "grpo":
            assert used == {"shapes"}
        elif name in LAYER_0:
            assert used <= LAYER_0, (name, used)


def test_layer_two_has_no_circles_and_every_room_has_a_layer():
    for file in PACKAGE:
        name = room(file)
        if name in LAYER_2:
            later = LAYER_2[LAYER_2.index(name):]
            assert not ours(file) & set(later), name
        else:
            assert name in LAYER_0 | {"grpo", "__init__"} or name.startswith(("task/", "policy/")), name


def test_task_knows_no_torch():
    assert not [name for name in users_of("torch") if name.startswith("task/")]


def test_every_room_has_its_tests():
    for file in PACKAGE:
        if file.name != "__init__.py":
            place = file.relative_to(ROOT / "minigrpo")
            assert (ROOT / "tests" / place.with_name(f"test_{place.name}")).exists(), place


def test_nobody_imports_the_recipes():
    for file in PACKAGE:
        assert not imports(file) & {"train", "eval"}, room(file)


@pytest.mark.parametrize("library, home", [("tokenizers", "policy/tokenizer"),
                                           ("safetensors", "policy/weights"), ("huggingface_hub", "policy/hub"),
                                           ("sqlite3", "task/sqlite"), ("tqdm", "metrics"),
                                           ("matplotlib", "pictures")])
def test_a_library_is_named_in_one_file(library, home):
    assert users_of(library) == [home]


def test_the_client_of_mariadb_is_named_where_queries_run_and_where_they_are_prepared():
    assert users_of("pymysql") == ["task/mariadb", "task/mariadb_setup"]


def test_nothing_is_unpickled_or_run_as_code_and_nothing_undeclared_is_imported():
    import sys
    for file in [*PACKAGE, *RECIPES]:
        roots = {name.split(".")[0] for name in imports(file)}
        assert not roots & {"pickle", "shelve", "marshal", "dill", "joblib"}, file
        assert roots <= THIRD_PARTY | {"minigrpo"} | set(sys.stdlib_module_names), (file, roots)
        assert not {"torch.load", "torch.save", "eval", "exec", "compile", "__import__", "ast.literal_eval", "os.system",
                    "os.popen"} & set(calls(file)), file


def calls(file: Path) -> list[str]:
    return [ast.unparse(node.func) for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)]


def test_one_place_for_console_randomness_and_devices():
    for file in PACKAGE:
        name, text = room(file), file.read_text(encoding="utf-8")
        assert "print" not in calls(file), name
        assert "torch.manual_seed" not in calls(file), name
        assert not any(call.startswith("torch.cuda") for call in calls(file)) or name in ("runtime", "policy/graph"), name
        assert '"cuda' not in text or name in ("runtime", "config", "policy/graph"), name


# The tokenizers library raises nothing more specific than Exception for a file that is none; a user's own reward may raise
# whatever there is.
BARE = {"policy/tokenizer", "task/reward"}


def test_every_except_names_its_class():
    for file in [*PACKAGE, *RECIPES]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                named = {ast.unparse(part) for part in getattr(node.type, "elts", [node.type])} if node.type else set()
                bare = not named or named & {"Exception", "BaseException"}
                assert not bare or (file in PACKAGE and room(file) in BARE), (file.name, node.lineno)
