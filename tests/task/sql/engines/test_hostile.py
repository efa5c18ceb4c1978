"""Hostile SQL (tests/hostile.py) against the executors: the status that each must get, in time, and nothing left behind; the
layers one by one."""

import gc
import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from minigrpo.task.sql.data import athletes
from minigrpo.task.sql.engines.database import Database
from minigrpo.task.sql.engines.guard import objection
from minigrpo.task.sql.engines.mariadb import MariaDB
from minigrpo.task.sql.engines.mariadb_text import QUOTED, text_objection
from minigrpo.task.sql.engines.sqlite import SQLite
from tests.hostile import FAMILIES, FILE, HONEST, HONEST_ROWS, TIME_LIMIT, Family, cases, held, open_engine, run_cases, run_one
from tests.mariadb_server import skip_without_mariadb
from tests.paths import ROOT
from tests.processes import eventually

BUSY = 2.0              # seconds that a busy machine may add: a hang would show
GOLD = [Path(os.environ.get("MINIGRPO_TEMPTABQA", ROOT / "data/TEMPTABQA-C")), ROOT.parent / "shared/temptabqa_c"]


@pytest.fixture(scope="module", params=["mariadb", "sqlite"])
def engine(request) -> str:
    if request.param == "mariadb":
        skip_without_mariadb()
    return request.param


@pytest.fixture(scope="module")
def database(engine: str) -> Iterator[Database]:
    with open_engine(engine, 1) as opened:
        assert opened.run(HONEST, "games").rows == HONEST_ROWS
        yield opened


def server() -> Iterator[MariaDB]:
    skip_without_mariadb()
    with open_engine("mariadb", 1) as opened:
        assert opened.run(HONEST, "games").rows == HONEST_ROWS
        yield opened


mariadb = pytest.fixture(server)


# ---------------------------------------------------------------------------------------------------- what there is to harm
def state(database: Database) -> dict[str, object]:
    """Everything outside a query that a query could change."""
    seen: dict[str, object] = {"files": os.path.exists(FILE), "threads": threading.active_count()}
    if isinstance(database, SQLite):
        (slot,) = database._slots.queue
        gc.collect()
        return seen | {"open files": len(os.listdir("/proc/self/fd")), "databases": sorted(slot)} | {
            name: (worker.connection.total_changes, worker.connection.in_transaction) for name, worker in slot.items()}
    with replace(database._readers["games"], user="root", password="", database="").connect() as connection:
        def rows(sql: str) -> list[tuple]:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return sorted(cursor.fetchall())

        def alone() -> bool:
            """Nobody is connected but we here and the one slot."""
            return len(rows("SELECT ID FROM information_schema.PROCESSLIST WHERE ID <> CONNECTION_ID()")) <= 1

        assert eventually(alone), rows("SHOW PROCESSLIST")
        folder = Path(database._server.socket).parent
        # MariaDB makes temporary files with a name of letters that change, and unlinks them at once.
        return seen | {
            "data": rows("CHECKSUM TABLE games.Athlete, games.Medal, other_games.Secret"),
            "tables": rows("SELECT table_schema, table_name, table_type, table_rows IS NULL FROM information_schema.tables"),
            "accounts": rows("SELECT user, host, priv FROM mysql.global_priv"), "rights": rows("SELECT * FROM mysql.db"),
            "programs": rows("SELECT name FROM mysql.proc WHERE db <> 'sys'") + rows("SELECT name FROM mysql.event"),
            "settings": rows("SHOW GLOBAL VARIABLES WHERE Variable_name NOT LIKE '%gtid%'"),
            "locks": rows("SELECT COUNT(*) FROM information_schema.innodb_trx"), "folder": sorted(os.listdir(folder)),
            "data folder": sorted(name for name in os.listdir(folder / "data") if "log" not in name)}


def session(database: MariaDB) -> tuple:
    """What the next query finds in its session: settings, variables, locks, the database, a temporary table."""
    (slot,) = database._slots.queue
    connection = slot["games"] if slot.get("games") and slot["games"].open else database._readers["games"].connect()
    execution = database._attempt(database._readers["games"], connection, (
        "SELECT @@max_statement_time, @@tx_read_only, @@autocommit, @@sql_mode, @@character_set_client, @@max_session_mem_used, "
        "@@in_transaction, @@foreign_key_checks, @a, DATABASE(), IS_FREE_LOCK('mine'), CURRENT_ROLE(), LAST_INSERT_ID()"))
    return execution.rows


def harmless(database: Database, family: Family, statuses: list[str] | None) -> None:
    """Run a family, and look after each query: its status and time, the next honest query, the session; in the end at all."""
    before = state(database)
    fresh = session(database) if isinstance(database, MariaDB) else None
    seconds = []
    for sql in family.queries:
        outcome = run_one(database, family, sql)
        seconds.append(outcome.seconds)
        assert statuses is None or outcome.execution.status in statuses, (sql[:300], outcome.execution)
        assert outcome.seconds < TIME_LIMIT + 0.5 + BUSY, (sql[:300], outcome)
        assert database.run(HONEST, "games").rows == HONEST_ROWS, sql[:300]
        if isinstance(database, MariaDB):
            assert session(database) == fresh, sql[:300]
    assert median(seconds) < TIME_LIMIT + 0.5                   # what is promised; one by one, a busy machine adds to it
    assert state(database) == before


# --------------------------------------------------------------------------------------------------------- all layers at once
def patient(family: Family) -> bool:
    """Whether it takes its time: queries that only their limit ends."""
    return any("timeout" in family.expected(engine) for engine in ("mariadb", "sqlite"))


@pytest.mark.parametrize("family", [pytest.param(family, id=str(family), marks=[pytest.mark.slow] if patient(family) else [])
                                    for family in FAMILIES])
def test_it_gets_its_status_in_time_and_leaves_nothing(database: Database, engine: str, family: Family) -> None:
    if not family.expected(engine):
        pytest.skip(f"it is no SQL of {engine}")
    harmless(database, family, family.expected(engine))


def test_they_are_many(engine: str) -> None:
    assert len(cases(engine)) >= 300 and len({sql for _, sql in cases(engine)}) >= 0.97 * len(cases(engine))


@pytest.mark.slow
def test_sixteen_at_once(engine: str) -> None:
    """What is stopped by a limit may be stopped by another where sixteen share a processor; what was refused still is."""
    with open_engine(engine, 16) as database:
        for outcomes, _client, highest in run_cases(database, engine, 16):
            for outcome in outcomes:
                wanted = set(outcome.family.expected(engine))
                wanted |= {"timeout", "too_large"} if wanted & {"timeout", "too_large", "ok"} else set()
                assert outcome.execution.status in wanted, outcome
                # Waiting for a free slot is not the query's time, nor on SQLite waiting for the processor.
                assert min(outcome.seconds, outcome.execution.seconds) < TIME_LIMIT + 0.5 + BUSY, outcome
            assert database.run(HONEST, "games").rows == HONEST_ROWS
            assert engine == "sqlite" or highest < 80 + 16 * (64 + 8)           # MiB, as below


HEAVY = {"not text", "wide rows", "one huge cell", "one huge cell, SQLite", "recursion that grows", "WITH tables that double",
         "text padded or joined without end", "sorts that spill wide rows"}


def test_memory_is_bounded(database: Database, engine: str) -> None:
    """The client keeps what is read of a result, a megabyte and a row at most, and copies of 10 MB of text while it looks at
    them; a session of the server may hold 64 MiB and a temporary table 8, beside the 80 of the server itself, and its allocator keeps
    some of what a session before has given back."""
    before = held(Path("/proc/self"))
    for _, client, highest in run_cases(database, engine, 1, [family for family in FAMILIES if family.name in HEAVY]):
        assert client < before + 64
        assert engine == "sqlite" or highest < 80 + 2 * (64 + 8) + 32


# ------------------------------------------------------------------------------------------------------------- layers alone
# What the look at the text does not see: rights to tables, and FOR UPDATE, which a session that only reads refuses.
NOT_OF_THE_TEXT = {"locks on rows", "other databases' tables"}


@pytest.mark.parametrize("family", [family for family in FAMILIES
                                    if family.mariadb == "refused" and family.name not in NOT_OF_THE_TEXT], ids=str)
def test_the_text_alone_says_no(family: Family) -> None:
    assert [sql for sql in family.queries if not text_objection(sql)] == []


# What is one SELECT without any forbidden sign: what it calls and names is all that there is to see.
SELECTS = {"named locks", "files", "waits", "what tells of the server", "the server's own tables", "text made long", "regular functions"}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.name in SELECTS], ids=str)
def test_the_look_that_all_engines_share_does_not_see_what_a_select_calls(family: Family) -> None:
    """So that it is mariadb_text.py alone that says no to these above."""
    assert [sql for sql in family.queries if objection(sql, QUOTED)] == []


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family.mariadb and family.name != "not text"], ids=str)
def test_without_the_look_at_the_text_it_does_no_harm_either(mariadb_unguarded: MariaDB, family: Family) -> None:
    """Rights, a session that only reads, its limits, the caps and the watch hold alone. Only the status may differ."""
    with suppress(FileNotFoundError):
        os.remove(FILE)
    harmless(mariadb_unguarded, family, None)


unguarded_server = pytest.fixture(scope="module")(server)


@pytest.fixture
def mariadb_unguarded(unguarded_server: MariaDB, monkeypatch) -> MariaDB:
    monkeypatch.setattr("minigrpo.task.sql.engines.mariadb.text_objection", lambda sql: "")
    return unguarded_server


def test_as_root_the_text_and_the_session_still_hold(mariadb: MariaDB) -> None:
    """An account that may do everything: only other databases' tables can be read then, and nothing is changed."""
    mariadb._readers = {name: replace(reader, user="root", password="") for name, reader in mariadb._readers.items()}
    for family in FAMILIES:
        if family.mariadb.startswith("refused") or family.mariadb == "syntax":
            before = state(mariadb)
            for sql in family.queries:
                assert not mariadb.run(sql, "games").ok or family.name == "other databases' tables", sql
            assert state(mariadb) == before


# ------------------------------------------------------------------------------------------------------ and honest queries
def test_no_honest_query_is_refused() -> None:
    """The gold SQL of the embedded task, and of the benchmark where it is present."""
    known = [question.gold_sql for split in ("train", "heldout") for question in athletes.load_questions(split)]
    honest = [sql for sql in known if sql]
    for file in [folder / "gold_sql.jsonl" for folder in GOLD if (folder / "gold_sql.jsonl").is_file()]:
        honest += [sql for line in file.read_text(encoding="utf-8").splitlines() if (sql := json.loads(line)["sql"])]
    assert len(honest) > 100
    assert [sql for sql in honest if text_objection(sql)] == []
