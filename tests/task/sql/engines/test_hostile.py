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
from tests.processes import eventually
from tests.temptabqa import BENCHMARK, WITH_GOLD

BUSY = 2.0              # seconds that a busy machine may add; a query that hangs takes longer


@pytest.fixture(scope="module", params=["mariadb", "sqlite"])
def engine(request) -> str:
    if request.param == "mariadb":
        skip_without_mariadb()
    return request.param


@pytest.fixture(scope="module")
def database(engine: str) -> Iterator[Database]:
    gc.collect()
    gc.freeze()                                             # what is there stays: state() need not look through it
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
    """Everything that a query could change outside itself."""
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
    """The session that the next query finds: settings, variables, locks, the database, temporary tables."""
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
    assert median(seconds) < TIME_LIMIT + 0.5                   # the documented limit; a busy machine delays single queries further
    assert state(database) == before


# --------------------------------------------------------------------------------------------------------- all layers at once
def patient(family: Family) -> bool:
    """Whether only the time limit ends its queries."""
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
    """With sixteen queries on one processor, another limit may stop a query than alone; refused queries are still refused."""
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


@pytest.mark.slow
def test_memory_is_bounded(database: Database, engine: str) -> None:
    """The client keeps what is read of a result, a megabyte and a row at most, and copies of 10 MB of text while it looks at
    them; a session of the server may hold 64 MiB and a temporary table 8, beside the 80 of the server itself, and its allocator keeps
    some of what a session before has given back."""
    before = held(Path("/proc/self"))
    for _, client, highest in run_cases(database, engine, 1, [family for family in FAMILIES if family.name in HEAVY]):
        assert client < before + 64
        assert engine == "sqlite" or highest < 80 + 2 * (64 + 8) + 32


# ------------------------------------------------------------------------------------------------------------- layers alone
# What the text checks do not see: rights to tables, and FOR UPDATE, which a read-only session refuses.
NOT_OF_THE_TEXT = {"locks on rows", "other databases' tables"}


@pytest.mark.parametrize("family", [family for family in FAMILIES
                                    if family.mariadb == "refused" and family.name not in NOT_OF_THE_TEXT], ids=str)
def test_the_text_alone_says_no(family: Family) -> None:
    assert [sql for sql in family.queries if not text_objection(sql)] == []


# What is one SELECT without any forbidden sign: what it calls and names is all that there is to see.
SELECTS = {"named locks", "files", "waits", "what tells of the server", "the server's own tables", "text made long", "regular functions"}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.name in SELECTS], ids=str)
def test_the_look_that_all_engines_share_does_not_see_what_a_select_calls(family: Family) -> None:
    """So that only mariadb_text.py refuses the ones above."""
    assert [sql for sql in family.queries if objection(sql, QUOTED)] == []


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family.mariadb and family.name != "not text"], ids=str)
def test_without_the_look_at_the_text_it_does_no_harm_either(mariadb_unguarded: MariaDB, family: Family) -> None:
    """Rights, a read-only session, its limits, the limits on rows and the time limit hold without the text checks. Only the status may differ."""
    with suppress(FileNotFoundError):
        os.remove(FILE)
    harmless(mariadb_unguarded, family, None)


unguarded_server = pytest.fixture(scope="module")(server)


@pytest.fixture
def mariadb_unguarded(unguarded_server: MariaDB, monkeypatch) -> MariaDB:
    monkeypatch.setattr("minigrpo.task.sql.engines.mariadb.text_objection", lambda sql: "")
    return unguarded_server


def test_as_root_the_text_and_the_session_still_hold(mariadb: MariaDB) -> None:
    """An account with all rights: then other databases' tables can be read, but still nothing is changed."""
    mariadb._readers = {name: replace(reader, user="root", password="") for name, reader in mariadb._readers.items()}
    for family in FAMILIES:
        if family.mariadb.startswith("refused") or family.mariadb == "syntax":
            before = state(mariadb)
            for sql in family.queries:
                assert not mariadb.run(sql, "games").ok or family.name == "other databases' tables", sql
            assert state(mariadb) == before


# ------------------------------------------------------------------------------------------------------ and honest queries
def test_no_honest_query_is_refused() -> None:
    """The gold SQL of the made-up athletes, and of the benchmark where it is present."""
    known = [question.gold_sql for split in ("train", "heldout") for question in athletes.load_questions(split)]
    honest = [sql for sql in known if sql]
    if WITH_GOLD:
        lines = (BENCHMARK / "gold_sql.jsonl").read_text(encoding="utf-8").splitlines()
        honest += [sql for line in lines if (sql := json.loads(line)["sql"])]
    assert len(honest) > 100
    assert [sql for sql in honest if text_objection(sql)] == []
