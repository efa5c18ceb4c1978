"""What runs a query: the contract of an engine, its guard, MariaDB and SQLite."""
