"""Config and data set → an engine with the databases that the questions are asked of, and their tables."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from minigrpo import config
from minigrpo.common.errors import UserError
from minigrpo.task.sql.data.dataset import Dataset
from minigrpo.task.sql.engines import mariadb, sqlite
from minigrpo.task.sql.engines.database import Database, Limits, MockDatabase, Tables

Opened = tuple[Database, Mapping[str, Tables]]


def open_databases(path: str, dataset: Dataset, cfg: config.Database) -> Opened:
    """The configured engine, and each database's tables by name. Tables of the data set are loaded into the engine; databases
    that exist already are used where they are. ``path``: the config key ``task.path``."""
    limits = Limits(time_limit=cfg.time_limit, max_rows=cfg.max_rows, max_bytes=cfg.max_bytes, connections=cfg.connections)
    if dataset.database_names:
        return _open_existing(path, dataset.database_names(path), limits, cfg)
    assert dataset.tables, "a data set has tables or names of databases"
    tables = dataset.tables(path)
    if cfg.engine == "mock":
        return MockDatabase(), tables
    if cfg.engine == "sqlite":
        return sqlite.open_sqlite(tables, limits), tables
    if not cfg.host and not cfg.socket:
        return mariadb.open_private(tables, limits), tables
    return mariadb.open_server(tables, limits, **_login(cfg)), tables


def _open_existing(path: str, names: Sequence[str], limits: Limits, cfg: config.Database) -> Opened:
    if cfg.engine == "mock":
        raise UserError('database.engine: "mock" has no tables to show; task.kind = "jsonl" takes mariadb or sqlite')
    if cfg.engine == "sqlite":
        return sqlite.open_files(path, names, limits)
    if not cfg.host and not cfg.socket:
        raise UserError('task.kind = "jsonl" asks databases that exist: name their MariaDB server by database.host or '
                        'database.socket, or take database.engine = "sqlite"')
    return mariadb.open_existing(names, limits, **_login(cfg))


def _login(cfg: config.Database) -> dict[str, Any]:
    """A given server's password comes from the environment."""
    return dict(host=cfg.host, port=cfg.port, socket=cfg.socket, user=cfg.user,
                password=os.environ.get(config.PASSWORD_VARIABLE, ""))
