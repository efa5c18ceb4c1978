"""databases.py: the engine that a config names with the data set's tables, a given server, databases that exist."""

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from minigrpo.config import Config, load_config
from minigrpo.task.sql.databases import Opened, open_databases
from minigrpo.task.sql.engines.database import DatabaseError, MockDatabase
from minigrpo.task.sql.engines.mariadb import MariaDB
from minigrpo.task.sql.engines.sqlite import SQLite
from minigrpo.task.sql.task import DATASETS
from tests.mariadb_server import needs_mariadb


@pytest.fixture
def config(small_toml):
    return lambda *overrides: load_config(small_toml, ["run.out=unused", *overrides])


def opened(cfg: Config) -> Opened:
    return open_databases(cfg.task.path, DATASETS[cfg.task.kind], cfg.database)


def loaded(cfg: Config) -> closing:
    return closing(opened(cfg)[0])


def refusal(cfg: Config) -> str:
    with pytest.raises((ValueError, DatabaseError)) as caught:
        opened(cfg)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------- tables that are brought along
@pytest.mark.parametrize("engine, kind", [("mock", MockDatabase), ("sqlite", SQLite),
                                          pytest.param("mariadb", MariaDB, marks=needs_mariadb)])
def test_each_engine_has_the_tables_of_the_data_set(config, engine, kind):
    """The benchmark's two databases and the renamed one; the mock answers without them, and prompts show them all the same."""
    cfg = config(f"database.engine={engine}")
    database, tables = opened(cfg)
    with closing(database):
        assert isinstance(database, kind) and sorted(tables) == ["counterfactual", "original", "renamed"]
        assert all(database.run("SELECT 1", name).rows == ((1,),) for name in tables)
    if engine != "mock":
        with pytest.raises(DatabaseError):                  # it is closed
            database.run("SELECT 1", "original")


def test_without_the_original_database_there_is_no_renamed_one(config, tmp_path):
    """A folder that has CounterFactual alone: its questions can be asked, and nothing is missed."""
    source = Path(config().task.path)
    file = "Test_Dataset_with_Splits/CounterFactual.tsv"
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_bytes((source / file).read_bytes())
    cfg = config(f"task.path={tmp_path}", "database.engine=sqlite")
    database, tables = opened(cfg)
    database.close()
    assert tuple(tables) == ("counterfactual",)


def test_the_limits_are_the_configs(config):
    with loaded(config("database.max_rows=2", "database.max_bytes=100")) as database:
        assert database.run("SELECT 1 UNION SELECT 2 UNION SELECT 3", "original").status == "too_large"
        assert database.run(f"SELECT '{'x' * 101}'", "original").status == "too_large"
        assert database.run("SELECT 1 UNION SELECT 2", "original").ok


# ------------------------------------------------------------------------------------------------------- a given server
@needs_mariadb
def test_a_given_server_by_its_socket_and_a_login_it_refuses(config, monkeypatch):
    with loaded(config("database.engine=mariadb")) as private:
        socket = private._readers["original"].socket
        given = ("database.engine=mariadb", f"database.socket={socket}")
        with loaded(config(*given, "database.user=root")) as database:
            assert database.run("SELECT COUNT(*) FROM Athlete", "original").rows == \
                private.run("SELECT COUNT(*) FROM Athlete", "original").rows
        monkeypatch.setenv("MINIGRPO_DB_PASSWORD", "guessed")
        message = refusal(config(*given, "database.user=nobody"))
    assert f"MariaDB at {socket} as 'nobody'" in message and "Access denied" in message
    assert "guessed" not in message


@needs_mariadb
def test_a_server_that_is_not_there(config, tmp_path):
    cfg = config("database.engine=mariadb", f"database.socket={tmp_path}/s", "database.user=me")
    assert f"MariaDB at {tmp_path}/s as 'me'" in refusal(cfg)


# ---------------------------------------------------------------------------------------------------- databases that exist
@pytest.mark.parametrize("overrides, complaint", [
    (["database.engine=mariadb"], 'task.kind = "jsonl" asks databases that exist: name their MariaDB server by database.host '
                                  'or database.socket, or take database.engine = "sqlite"'),
    (["database.engine=mock"], 'database.engine: "mock" has no tables to show; task.kind = "jsonl" takes mariadb or sqlite')])
def test_databases_that_exist_have_to_be_somewhere(config, shop, overrides, complaint):
    assert refusal(config("task.kind=jsonl", f"task.path={shop}", *overrides)) == complaint


def test_a_database_that_questions_name_and_nobody_has(config, shop, tmp_path):
    """Of any split, before a question is asked; and a split with a broken line likewise."""
    folder = shutil.copytree(shop, tmp_path / "mine")
    cfg = config("task.kind=jsonl", f"task.path={folder}")
    (folder / "later.jsonl").write_text('{"question": "?", "answer": 1, "database": "shopp"}\n')
    assert refusal(cfg) == f"unknown database 'shopp' (did you mean 'shop'?): {folder} has shop.sqlite"
    (folder / "later.jsonl").write_text('{"question": "?", "answer": 1}\n')
    assert refusal(cfg) == f"{folder / 'later.jsonl'}:1: expected a JSON object with database, got " \
        '{"question": "?", "answer": 1}'


def test_a_database_that_exists_has_its_own_tables_and_the_configs_limits(config, shop_keys):
    """On both engines."""
    cfg = config(*shop_keys, "database.max_rows=2")
    database, tables = opened(cfg)
    with closing(database):
        assert tuple(tables) == ("shop",) and "customers" in {table.name.lower() for table in tables["shop"]}
        assert database.run("SELECT name FROM customers LIMIT 2", "shop").ok
        assert database.run("SELECT name FROM customers", "shop").status == "too_large"
