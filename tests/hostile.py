"""SQL that a policy might write to get at more than rows: what becomes of it, on MariaDB and on SQLite.

``python -m tests.hostile [mariadb|sqlite] [AT_ONCE]`` runs all of it, one by one or AT_ONCE at a time, and prints a table, as
Markdown: family, cases, what became of them, the slowest (on SQLite, whose limit is the processor's, in its seconds), the
highest memory of the client and of the server. ``python -m tests.hostile ENGINE pace``: honest queries at once.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from minigrpo.task.sql.engines.database import Column, Database, Execution, Limits, Table, run_all
from minigrpo.task.sql.engines.mariadb import MariaDB, open_private
from minigrpo.task.sql.engines.sqlite import open_sqlite

TIME_LIMIT = 0.25
# Three hundred medals: seven tables joined freely are 300^7 rows.
ATHLETE = Table("Athlete", (Column("athlete_id", "INT"), Column("name", "TEXT")), ((1, "Zoë Ødegård"), (2, "Ann O'Neil")))
MEDAL = Table("Medal", (Column("medal_id", "INT"), Column("athlete_id", "INT", ("Athlete", "athlete_id")),
                        Column("city", "TEXT"), Column("year", "INT")),
              tuple((i, 1 + i % 2, f"City {i % 7}", 1980 + i % 40) for i in range(300)))
DATABASES = {"games": (ATHLETE, MEDAL), "other_games": (Table("Secret", (Column("id", "INT"),), ((7,),)),)}
HONEST = "SELECT COUNT(*), SUM(medal_id * year), MIN(city), MAX(name) FROM Medal JOIN Athlete USING (athlete_id)"
HONEST_ROWS = ((300, sum(i * (1980 + i % 40) for i in range(300)), "City 0", "Zoë Ødegård"),)
FILE = "/tmp/minigrpo-hostile"              # what some try to write


@dataclass(frozen=True)
class Family:
    """Queries of one kind, and what may become of them on each engine: statuses, or nothing where they mean nothing."""

    name: str
    mariadb: str
    sqlite: str
    queries: Sequence[str] = field(repr=False)

    def __str__(self) -> str:
        return self.name

    def expected(self, engine: str) -> list[str]:
        return (self.mariadb if engine == "mariadb" else self.sqlite).split()


def lines(text: str) -> list[str]:
    """A query a line, {file} being a file that nobody should write."""
    return [line.strip().replace("{file}", FILE) for line in text.strip().splitlines()]


def repeat(text: str, times: int, between: str = ", ") -> str:
    """``text`` so many times, each {} replaced by the number of its copy."""
    return between.join(text.replace("{}", str(i)) for i in range(times))


def medals(count: int) -> str:
    """The medals, so many times joined with themselves: m0, m1, ..."""
    return repeat("Medal m{}", count)


def doubling(levels: int, body: str = "SELECT p.x FROM c{} p, c{} q") -> str:
    """WITH tables each of which mentions the one before twice."""
    tables = "".join(f", c{i + 1} AS ({body.replace('{}', str(i))})" for i in range(levels))
    return f"WITH c0 AS (SELECT 1 x){tables} SELECT COUNT(*) FROM c{levels}"


def text(letter: str, length: int = 64_000) -> str:
    """A long text on MariaDB, which pads to no more than a quarter of a packet."""
    return f"CONCAT({repeat(f'RPAD({letter!r}, {length // 4 // len(letter.encode())}, {letter!r})', 4)})"


ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + {} FROM r) SELECT COUNT(*) FROM r"
# 'a' doubled while shorter than 10,000, 16,384 times; y is nearly twice as long, within SQLite's cap of a value
LONG = ("WITH RECURSIVE s(x) AS (SELECT 'a' UNION ALL SELECT x || x FROM s WHERE LENGTH(x) < 10000), "
        "m AS (SELECT MAX(x) x FROM s), n AS (SELECT x, x || SUBSTR(x, 1, 16000) y FROM m) ")

FAMILIES = [
    Family("writes", "refused", "refused", lines("""
        INSERT INTO Medal VALUES (999, 1, 'x', 1)
        INSERT INTO Medal (medal_id) VALUES (999)
        INSERT INTO Medal SELECT * FROM Medal
        INSERT IGNORE INTO Medal VALUES (1, 1, 'x', 1)
        INSERT DELAYED INTO Medal VALUES (999, 1, 'x', 1)
        INSERT INTO Medal VALUES (1, 1, 'x', 1) ON DUPLICATE KEY UPDATE year = 0
        insert/**/into Medal values (999, 1, 'x', 1)
        REPLACE INTO Medal VALUES (1, 1, 'x', 1)
        UPDATE Medal SET year = 0
        UPDATE Medal, Athlete SET year = 0, name = 'x'
        DELETE FROM Medal
        DELETE Medal, Athlete FROM Medal JOIN Athlete
        (DELETE FROM Medal)
        TRUNCATE Medal
        TRUNCATE TABLE Athlete
        LOAD DATA INFILE '/etc/passwd' INTO TABLE Medal
        LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE Medal
        LOAD XML INFILE '/etc/passwd' INTO TABLE Medal
        REPLACE INTO other_games.Secret VALUES (8)
        MERGE INTO Medal USING Athlete ON 1 = 1 WHEN MATCHED THEN DELETE""")),
    Family("writes behind WITH", "refused syntax", "refused syntax", lines("""
        WITH d AS (SELECT 1) DELETE FROM Medal
        WITH d AS (SELECT 1) UPDATE Medal SET year = 0
        WITH d AS (SELECT 1) INSERT INTO Medal SELECT 999, 1, 'x', 1
        WITH d AS (SELECT 1) REPLACE INTO Medal SELECT 1, 1, 'x', 1
        WITH d AS (DELETE FROM Medal RETURNING *) SELECT * FROM d
        SELECT * FROM (DELETE FROM Medal RETURNING *) d""")),
    Family("tables made, changed, dropped", "refused", "refused", lines("""
        CREATE TABLE x (a INT)
        CREATE TABLE x AS SELECT * FROM Medal
        CREATE TEMPORARY TABLE x (a INT)
        CREATE OR REPLACE TABLE Medal (a INT)
        CREATE VIEW v AS SELECT 1
        CREATE INDEX i ON Medal (year)
        CREATE DATABASE x
        CREATE SEQUENCE s
        CREATE FUNCTION f() RETURNS INT RETURN 1
        CREATE AGGREGATE FUNCTION f(x INT) RETURNS INT BEGIN LOOP FETCH GROUP NEXT ROW; END LOOP; END
        CREATE PROCEDURE p() SELECT 1
        CREATE TRIGGER t BEFORE INSERT ON Medal FOR EACH ROW SET NEW.year = 0
        CREATE EVENT e ON SCHEDULE EVERY 1 SECOND DO DELETE FROM Medal
        CREATE FUNCTION f RETURNS STRING SONAME 'x.so'
        CREATE SERVER s FOREIGN DATA WRAPPER mysql OPTIONS (HOST 'x')
        CREATE TABLE x (a INT) ENGINE=CSV
        ALTER TABLE Medal DROP COLUMN year
        ALTER TABLE Medal RENAME TO x
        ALTER DATABASE games CHARACTER SET latin1
        RENAME TABLE Medal TO x
        DROP TABLE Medal
        DROP TABLE IF EXISTS Medal, Athlete
        DROP DATABASE games
        DROP VIEW v
        DROP TABLE other_games.Secret
        ANALYZE TABLE Medal
        OPTIMIZE TABLE Medal
        REPAIR TABLE Medal
        CHECK TABLE Medal""")),
    Family("accounts and rights", "refused", "refused", lines("""
        GRANT ALL ON *.* TO reader_0@localhost
        GRANT ALL PRIVILEGES ON games.* TO PUBLIC
        REVOKE ALL ON *.* FROM reader_0@localhost
        CREATE USER x
        CREATE ROLE x
        ALTER USER CURRENT_USER() IDENTIFIED BY ''
        SET PASSWORD = ''
        SET PASSWORD FOR root@localhost = PASSWORD('x')
        SET ROLE x
        SET DEFAULT ROLE x
        RENAME USER root@localhost TO x@localhost
        DROP USER root@localhost
        FLUSH PRIVILEGES
        SHOW GRANTS""")),
    Family("more than one statement", "refused", "refused syntax", lines(r"""
        SELECT 1; DROP TABLE Medal
        SELECT 1;SELECT 2
        SELECT 1;;
        SELECT 1; ; SELECT 2;
        ; SELECT 1
        SELECT ';'; SELECT ';'
        SELECT '\'; DROP TABLE Medal; '; DROP TABLE Medal
        SELECT ''';'; DROP TABLE Medal
        SELECT "\""; DROP TABLE Medal
        SELECT `;`; DROP TABLE Medal
        SELECT 'x' 'y'; DROP TABLE Medal; SELECT 'z'
        SELECT 1 \g DROP TABLE Medal; SELECT 1
        WITH x AS (SELECT 1) SELECT * FROM x; DELETE FROM Medal""")),
    Family("comments", "refused", "refused", lines("""
        SELECT 1 -- x
        SELECT 1 --
        SELECT 1--1
        -- x
        SELECT 1 # x
        SELECT /* x */ 1
        SELECT 1 /*! INTO OUTFILE '{file}' */
        SELECT 1 /*!50000 , SLEEP(9) */
        SELECT 1 /*M! , SLEEP(9) */
        SELECT 1 /*!999999 x */
        SELECT/*+ MAX_EXECUTION_TIME(0) */ 1
        SELECT 1 /*
        SELECT 1 /* '*/, SLEEP(9) -- '
        SELECT 'x' /*' */
        /*! DROP TABLE Medal */""")),
    Family("settings and variables", "refused", "refused", lines("""
        SET SESSION max_statement_time = 0
        SET max_statement_time = 0
        SET GLOBAL max_statement_time = 0
        SET GLOBAL read_only = 0
        SET GLOBAL general_log = 1
        SET STATEMENT max_statement_time = 0 FOR SELECT SLEEP(9)
        SET STATEMENT max_session_mem_used = 0 FOR SELECT 1
        SET sql_mode = 'ANSI_QUOTES'
        SET TRANSACTION READ WRITE
        SET NAMES latin1
        SET CHARACTER SET utf16
        SET autocommit = 0
        SET @a = 1
        SELECT @a
        SELECT @a := REPEAT('x', 60000)
        SELECT @a := CONCAT(@a, @a) FROM Medal
        SELECT @@version
        SELECT @@global.secure_file_priv
        SELECT @@SESSION.max_statement_time
        SELECT year INTO @a FROM Medal
        SELECT @`a b`
        SELECT 1 LIMIT @a""")),
    Family("the server and its sessions", "refused", "refused", lines("""
        USE other_games
        USE mysql
        KILL 1
        KILL QUERY 1
        KILL HARD USER root
        KILL (SELECT 1)
        SHUTDOWN
        FLUSH TABLES
        FLUSH TABLES WITH READ LOCK
        FLUSH STATUS
        RESET MASTER
        RESET QUERY CACHE
        PURGE BINARY LOGS TO 'x'
        CHANGE MASTER TO MASTER_HOST = 'x'
        START SLAVE
        STOP SLAVE
        INSTALL PLUGIN x SONAME 'x'
        INSTALL SONAME 'auth_socket'
        UNINSTALL SONAME 'x'
        BINLOG 'x'
        CACHE INDEX Medal IN x
        LOAD INDEX INTO CACHE Medal
        BACKUP STAGE START
        BACKUP LOCK Medal
        SHOW PROCESSLIST
        SHOW VARIABLES
        SHOW CREATE TABLE Medal
        SHOW ENGINE INNODB STATUS
        EXPLAIN SELECT 1
        ANALYZE SELECT SLEEP(9)
        ANALYZE FORMAT=JSON SELECT 1
        DESCRIBE Medal
        HELP 'x'""")),
    Family("transactions and locks", "refused", "refused", lines("""
        BEGIN
        START TRANSACTION
        START TRANSACTION WITH CONSISTENT SNAPSHOT
        COMMIT
        ROLLBACK
        SAVEPOINT x
        RELEASE SAVEPOINT x
        XA START 'x'
        XA RECOVER
        LOCK TABLES Medal WRITE
        LOCK TABLES Medal READ LOCAL
        UNLOCK TABLES""")),
    Family("locks on rows", "refused", "syntax", lines("""
        SELECT * FROM Medal FOR UPDATE
        SELECT * FROM Medal LIMIT 1 FOR UPDATE
        SELECT * FROM Medal FOR UPDATE NOWAIT
        SELECT * FROM Medal FOR UPDATE SKIP LOCKED
        SELECT * FROM Medal WHERE medal_id IN (SELECT medal_id FROM Medal FOR UPDATE)
        (SELECT * FROM Medal FOR UPDATE)""")),
    Family("locks on rows, for the query's own time", "ok too_large", "syntax", lines("""
        SELECT * FROM Medal LOCK IN SHARE MODE
        SELECT * FROM Medal LIMIT 1 LOCK IN SHARE MODE NOWAIT""")),
    Family("named locks", "refused", "other", lines("""
        SELECT GET_LOCK('mine', 0)
        SELECT GET_LOCK('mine', 100)
        SELECT RELEASE_LOCK('mine')
        SELECT RELEASE_ALL_LOCKS()
        SELECT IS_FREE_LOCK('mine')
        SELECT IS_USED_LOCK('mine')""")),
    Family("programs", "refused", "refused", lines("""
        HANDLER Medal OPEN
        HANDLER Medal READ FIRST
        CALL x()
        CALL sys.ps_setup_save(1)
        PREPARE p FROM 'DROP TABLE Medal'
        EXECUTE p
        EXECUTE IMMEDIATE 'DROP TABLE Medal'
        EXECUTE IMMEDIATE CONCAT('DROP', ' TABLE Medal')
        DEALLOCATE PREPARE p
        BEGIN NOT ATOMIC SELECT 1; END
        BEGIN NOT ATOMIC LOOP DO SLEEP(9); END LOOP; END
        BEGIN NOT ATOMIC DECLARE CONTINUE HANDLER FOR SQLEXCEPTION BEGIN END; SELECT SLEEP(9); END
        IF 1 THEN SELECT 1; END IF
        WHILE 1 DO SELECT 1; END WHILE
        FOR i IN 1..9 DO SELECT i; END FOR
        DO SLEEP(9)
        DO GET_LOCK('mine', 0)
        SIGNAL SQLSTATE '45000'
        RESIGNAL
        GET DIAGNOSTICS @a = NUMBER
        VALUES (1)
        TABLE Medal
        RETURN 1""")),
    Family("files", "refused", "refused syntax other", lines("""
        SELECT 1 INTO OUTFILE '{file}'
        SELECT * FROM Medal INTO OUTFILE '{file}'
        SELECT 'x' INTO DUMPFILE '{file}'
        SELECT 1 INTO OUTFILE '{file}' FROM Medal
        SELECT 1.5into outfile '{file}'
        SELECT 1.INTO OUTFILE '{file}'
        SELECT .5into dumpfile '{file}'
        SELECT 1e1INTO OUTFILE '{file}'
        SELECT 1E+1INTO DUMPFILE '{file}'
        SELECT \\NINTO OUTFILE '{file}'
        SELECT year+1.5into outfile '{file}' FROM Medal
        SELECT LOAD_FILE('/etc/passwd')
        SELECT LENGTH(LOAD_FILE('/proc/self/environ'))
        SELECT LOAD_FILE(0x2f6574632f706173737764)
        SELECT `LOAD_FILE`('/etc/passwd')
        SELECT READFILE('/etc/passwd')
        SELECT WRITEFILE('{file}', 'x')
        SELECT LOAD_EXTENSION('x')
        SELECT EDIT('x')""")),
    Family("waits", "refused", "other syntax", lines("""
        SELECT SLEEP(9)
        SELECT sleep (9)
        SELECT sLeEp\t(9)
        SELECT `sleep`(9)
        SELECT `sleep` (9)
        SELECT {fn sleep(9)}
        SELECT 1 WHERE SLEEP(9)
        SELECT (SELECT SLEEP(9))
        SELECT COUNT(SLEEP(1)) FROM Medal
        SELECT * FROM Medal ORDER BY SLEEP(1)
        SELECT * FROM Medal GROUP BY SLEEP(1)
        SELECT * FROM Medal HAVING SLEEP(1)
        SELECT * FROM Medal m JOIN Medal n ON SLEEP(1)
        SELECT IF(SLEEP(9), 1, 2)
        WITH x AS (SELECT SLEEP(9) s) SELECT s FROM x
        SELECT 1, SLEEP(9) AS (x)
        SELECT 1 LIMIT SLEEP(9)
        SELECT ſleep(9)
        SELECT BENCHMARK(1000000000, SHA2('x', 512))
        SELECT BENCHMARK (1000000000, 1 + 1)
        SELECT BENCHMARK(1000000000, (SELECT 1))
        SELECT MASTER_POS_WAIT('x', 1, 9)
        SELECT MASTER_GTID_WAIT('0-1-1', 9)""")),
    Family("what tells of the server", "refused", "refused other syntax unknown_column", lines("""
        SELECT VERSION()
        SELECT USER()
        SELECT CURRENT_USER()
        SELECT SESSION_USER()
        SELECT CURRENT_USER
        SELECT Current_User, year FROM Medal
        SELECT name FROM Athlete WHERE name=CURRENT_USER
        SELECT CURRENT_ROLE
        SELECT SESSION_USER
        SELECT SYSTEM_USER
        SELECT DATABASE()
        SELECT SCHEMA()
        SELECT CONNECTION_ID()
        SELECT LAST_INSERT_ID()
        SELECT LAST_INSERT_ID(7)
        SELECT FOUND_ROWS()
        SELECT ROW_COUNT()
        SELECT UUID()
        SELECT UUID_SHORT()
        SELECT SYSDATE()
        SELECT RAND()
        SELECT RANDOM()
        SELECT RANDOM_BYTES(1000)
        SELECT PASSWORD('x')
        SELECT ENCRYPT('x')
        SELECT BINLOG_GTID_POS('x', 1)
        SELECT NEXTVAL(s)
        SELECT SETVAL(s, 1)
        SELECT UPDATEXML('<a/>', '/a', 'x')
        SELECT EXTRACTVALUE('<a/>', '/a')
        SELECT sys.version_major()
        SELECT mysql.f(1)
        SELECT SQLITE_VERSION()
        SELECT CHANGES()
        SELECT ZEROBLOB(1000000000)
        SELECT RANDOMBLOB(1000000000)
        SELECT PRINTF('%1000000000d', 1)
        SELECT FORMAT_BYTES(1)
        SELECT * FROM Medal PROCEDURE ANALYSE()""")),
    Family("the server's own tables", "refused", "unknown_table", lines("""
        SELECT * FROM information_schema.tables
        SELECT * FROM INFORMATION_SCHEMA.COLUMNS
        SELECT * FROM information_schema . processlist
        SELECT * FROM `information_schema`.`user_privileges`
        SELECT * FROM `INFORMATION_SCHEMA`.innodb_trx
        SELECT * FROM information_schema.system_variables
        SELECT COUNT(*) FROM information_schema.columns a, information_schema.columns b, information_schema.columns c
        SELECT (SELECT COUNT(*) FROM information_schema.files)
        SELECT * FROM performance_schema.threads""")),
    Family("other databases' tables", "refused", "unknown_table refused", lines("""
        SELECT * FROM mysql.user
        SELECT * FROM mysql.global_priv
        SELECT authentication_string FROM mysql.user
        SELECT * FROM mysql.proc
        SELECT * FROM `mysql`.`db`
        SELECT * FROM mysql.innodb_table_stats
        SELECT * FROM sys.version
        SELECT * FROM sys.session
        SELECT * FROM other_games.Secret
        SELECT * FROM `other_games`.`Secret`
        SELECT * FROM Medal JOIN other_games.Secret ON 1 = 1
        SELECT name FROM Athlete UNION SELECT id FROM other_games.Secret""")),
    Family("SQLite's tables", "unknown_table refused syntax", "refused unknown_table", lines("""
        SELECT * FROM sqlite_master
        SELECT sql FROM sqlite_schema
        SELECT * FROM sqlite_temp_master
        SELECT * FROM sqlite_stat1
        SELECT * FROM pragma_table_info('Medal')
        SELECT * FROM pragma_database_list
        SELECT * FROM pragma_function_list
        SELECT * FROM json_each('[1]')
        SELECT * FROM dbstat
        SELECT * FROM sqlite_stmt
        SELECT * FROM sqlite_dbpage""")),
    Family("SQLite's settings and files", "refused", "refused", lines("""
        PRAGMA query_only = 0
        PRAGMA writable_schema = 1
        PRAGMA journal_mode = WAL
        PRAGMA temp_store = MEMORY
        PRAGMA hard_heap_limit = 0
        PRAGMA trusted_schema = 1
        PRAGMA user_version = 7
        ATTACH '{file}' AS x
        ATTACH ':memory:' AS x
        ATTACH 'file:{file}?mode=rwc' AS x
        DETACH x
        VACUUM
        VACUUM INTO '{file}'
        REINDEX
        ANALYZE
        END
        BEGIN EXCLUSIVE
        CREATE VIRTUAL TABLE x USING fts5(a)""")),
    Family("names of three parts", "refused", "refused", lines("""
        SELECT name FROM Athlete JOIN Medal USING (athlete_id) JOIN Medal m USING (athlete_id) WHERE Athlete.name.name = 'x'
        SELECT games.Medal.year FROM Medal
        SELECT games . Medal . year FROM Medal
        SELECT `games`.`Medal`.`year` FROM Medal
        SELECT games.Medal.* FROM Medal
        SELECT a.b.c""")),
    Family("cross joins", "timeout", "timeout", [
        "SELECT COUNT(*) FROM " + medals(n) + where
        for n in (4, 5, 7, 12) for where in (
            " WHERE m0.city <> m1.city AND m2.year + m3.year <> 1", " WHERE m0.year + m1.year + m2.year + m3.year = 1",
            " WHERE m0.city < m1.city OR m2.city LIKE '%x%' OR m3.city LIKE '%y%'")]),
    Family("recursion without an end", "ok other timeout", "timeout", [
        ENDLESS.replace("{}", "1"), ENDLESS.replace("{}", "0"), ENDLESS.replace("{}", "2") + " WHERE n < 0",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT SUM(n) FROM r"]),
    Family("recursion that grows", "timeout too_large other", "timeout too_large other refused", [
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT r.n + 1 FROM r, Medal) SELECT COUNT(*) FROM r",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT r.n + 1 FROM r, Medal, Athlete) SELECT MAX(n) FROM r",
        "WITH RECURSIVE r(n, x) AS (SELECT 1, city FROM Medal UNION ALL SELECT n + 1, CONCAT(x, x) FROM r, Medal) SELECT MAX(x) FROM r",
        "WITH RECURSIVE r(n) AS (SELECT medal_id FROM Medal UNION SELECT n * m.medal_id FROM r, Medal m) SELECT COUNT(*) FROM r"]),
    Family("WITH tables that double", "too_large timeout", "refused", [doubling(n) for n in (12, 14, 16, 20, 25, 30)]),
    Family("joins of WITH tables", "timeout too_large", "timeout refused", [
        f"WITH x AS (SELECT a.year FROM Medal a, Medal b) SELECT COUNT(*) FROM x a, x b WHERE a.year + b.year = {i}" for i in range(4)]),
    Family("many rows", "too_large timeout", "too_large", [
        "SELECT * FROM Medal, Medal m", "SELECT m0.city FROM " + medals(2), "SELECT 1 FROM " + medals(2), "SELECT NULL FROM " + medals(2),
        "SELECT m0.* FROM " + medals(5), f"SELECT city FROM Medal {repeat('UNION ALL SELECT city FROM Medal', 5, ' ')}",
        "SELECT m0.city FROM " + medals(2) + " LIMIT 1001", "SELECT m0.city FROM " + medals(2) + " LIMIT 1000000 OFFSET 3"]),
    Family("wide rows", "too_large timeout", "too_large other", [
        f"SELECT {repeat('m{}.*', 40)} FROM {repeat('Athlete m{}', 40)}",
        f"SELECT {repeat('city', 150)}, {repeat('CONCAT(city, city, city, city, city, city)', 45)} FROM Medal, Athlete, Athlete a",
        f"SELECT {repeat('name', 190)} FROM Athlete, Medal"]),
    Family("one huge cell", "too_large", "", [
        f"SELECT {repeat(text('x'), 20)}", f"SELECT {text('x')} FROM Medal", f"SELECT {repeat(text('é'), 20)}",
        f"SELECT CONCAT(city, {text('x')}) FROM Medal"]),
    Family("one huge cell, SQLite", "", "too_large", [
        LONG + "SELECT y || y FROM n", LONG + f"SELECT {repeat('y', 190)} FROM n", LONG + "SELECT GROUP_CONCAT(y, y) FROM n, Medal",
        LONG + f"SELECT CONCAT({repeat('y', 50)}) FROM n", LONG + "SELECT REPLACE(y, 'a', y) FROM n", LONG + "SELECT y FROM n, Medal"]),
    Family("text made long", "refused", "other refused too_large syntax", lines("""
        SELECT REPEAT('x', 1000000000)
        SELECT LENGTH(REPEAT(REPEAT('x', 60000), 60000))
        SELECT SPACE(1000000000)
        SELECT COMPRESS(REPEAT('x', 60000))
        SELECT UNCOMPRESS('x')
        SELECT AES_ENCRYPT('x', 'y')
        SELECT TO_BASE64('x')
        SELECT MAKE_SET(1, 'x')
        SELECT EXPORT_SET(5, 'x', 'y', ',', 64)
        SELECT WEIGHT_STRING('x')
        SELECT JSON_ARRAY(1)
        SELECT JSON_ARRAYAGG(m.city) FROM Medal m, Medal n
        SELECT JSON_OBJECTAGG(m.city, n.city) FROM Medal m, Medal n
        SELECT JSON_EXTRACT('[1]', '$[0]')
        SELECT JSON_DETAILED('[[[[[[1]]]]]]')
        SELECT JSON_SET('{}', '$.a', 1)
        SELECT JSON_QUOTE('x')
        SELECT * FROM JSON_TABLE('[1]', '$[*]' COLUMNS(a INT PATH '$')) x
        SELECT JSON_MERGE_PATCH('{}', '{}')
        SELECT COLUMN_CREATE('a', 1)""")),
    Family("text padded or joined without end", "ok timeout too_large", "", lines("""
        SELECT LENGTH(RPAD('x', 1000000000, 'y'))
        SELECT LENGTH(LPAD('x', 2147483647, 'y'))
        SELECT LENGTH(FORMAT(1e300, 1000))
        SELECT LENGTH(GROUP_CONCAT(m.city, n.city)) FROM Medal m, Medal n
        SELECT LENGTH(GROUP_CONCAT(m.city ORDER BY n.city, m.year SEPARATOR 'xxxxxxxxxx')) FROM Medal m, Medal n, Athlete
        SELECT LENGTH(GROUP_CONCAT(DISTINCT CONCAT(m.city, n.medal_id))) FROM Medal m, Medal n
        SELECT COUNT(DISTINCT m.city, n.medal_id, o.medal_id) FROM Medal m, Medal n, Medal o
        SELECT LENGTH(INSERT('x', 1, 1, RPAD('x', 16000, 'y')))""")),
    Family("functions that look at no clock", "timeout", "", [
        f"SELECT {repeat(call, 20)}" for call in (
            f"INSTR({text('é')}, CONCAT(RPAD('é', 16000, 'é'), '{{}}'))", f"LOCATE(CONCAT({text('é', 32_000)}, '{{}}'), {text('é')})",
            f"LENGTH(REPLACE({text('a')}, CONCAT({text('a', 32_000)}, '{{}}'), ''))",
            f"SUBSTRING_INDEX({text('é')}, CONCAT({text('é', 32_000)}, '{{}}'), 1) = 'x'",
            f"POSITION(CONCAT({text('é', 32_000)}, '{{}}') IN {text('é')})")]),
    Family("functions that look at no clock, SQLite", "", "timeout too_large", [
        LONG + "SELECT " + repeat("INSTR(y, x || '{}')", 40, " + ") + " FROM n, Medal",
        LONG + "SELECT " + repeat("LENGTH(REPLACE(y, x || '{}', ''))", 22, " + ") + " FROM n, Medal",
        LONG + "SELECT " + repeat("(y LIKE '%' || SUBSTR(x, 1, 90) || '{}')", 22, " + ") + " FROM n, Medal",
        LONG + "SELECT " + repeat("(y GLOB '*' || SUBSTR(x, 1, 90) || '{}')", 22, " + ") + " FROM n, Medal",
        LONG + ", t AS (SELECT y, REPLACE(x, 'a', 'b') || 'a' z FROM n) SELECT " + repeat("LENGTH(TRIM(y, z))", 22, " + ") + " FROM t, Medal",
        LONG + "SELECT " + repeat("LENGTH(UPPER(REPLACE(y, 'a', '{}')))", 15, " + ") + " FROM n, Medal",
        LONG + "SELECT " + repeat(f"(y GLOB '*{'[a-z]' * 13}b{{}}')", 46, " + ") + " FROM n, Medal",
        LONG + ", r(x) AS (SELECT x FROM n UNION ALL SELECT x || '' FROM r) SELECT COUNT(*) FROM r"]),
    Family("regular expressions", "ok other timeout refused", "other refused syntax", [
        f"SELECT {subject} {operator} '{pattern}'"
        for subject in ("RPAD('a', 16000, 'a')", "RPAD('a', 30, 'a')") for operator in ("REGEXP", "RLIKE", "NOT REGEXP")
        for pattern in ("(a+)+$b", "(a*)*(a*)*(a*)*b", "(a|aa)+$b", "(?=(a+))*b", "((((((a*)*)*)*)*)*)*b", "(.*)(.*)(.*)(.*)(.*)x",
                        "(?R)?a+b")]),
    Family("regular functions", "refused", "other", lines("""
        SELECT REGEXP_REPLACE('x', 'x', 'y')
        SELECT LENGTH(REGEXP_REPLACE(RPAD('x', 16000, 'x'), 'x', ''))
        SELECT REGEXP_REPLACE(REGEXP_REPLACE('x', 'x', 'yyyy'), 'y', 'xxxx')""")),
    Family("sequence tables", "unknown_table", "unknown_table", lines("""
        SELECT * FROM seq_1_to_3
        SELECT COUNT(*) FROM seq_1_to_3000000000
        SELECT * FROM seq_1_to_1000000000_step_3
        SELECT COUNT(*) FROM seq_1_to_100000 a, seq_1_to_100000 b
        SELECT MAX(seq) FROM seq_0_to_18446744073709551615
        SELECT value FROM generate_series(1, 1000000000)
        SELECT NEXT VALUE FOR s""")[:5]),
    Family("sorts that spill", "timeout too_large", "timeout too_large", [
        f"SELECT m0.city FROM {medals(n)} ORDER BY {order} LIMIT 1 OFFSET 100000000" for n in (4, 6) for order in (
            "m1.city, m2.city, m3.city", "m0.year + m1.year * m2.medal_id", "CONCAT(m0.city, m1.city, m2.city, m3.medal_id)")] + [
        f"SELECT DISTINCT CONCAT(m0.city, m1.medal_id, m2.medal_id) FROM {medals(4)}",
        f"SELECT m0.city, COUNT(*) FROM {medals(4)} GROUP BY m0.city, m1.medal_id, m2.medal_id, m3.medal_id LIMIT 1 OFFSET 100000000",
        f"SELECT SUM(r) FROM (SELECT ROW_NUMBER() OVER (ORDER BY m1.city, m2.medal_id) r FROM {medals(4)}) x",
        f"SELECT m0.medal_id FROM {medals(3)} UNION SELECT m0.medal_id + m1.medal_id * m2.medal_id FROM {medals(3)}, Medal m9",
        f"SELECT COUNT(*) FROM (SELECT m0.medal_id a, m1.medal_id b, m2.medal_id c FROM {medals(4)} EXCEPT SELECT 1, 2, 3) x"]),
    Family("sorts that spill wide rows", "timeout too_large", "", [
        f"SELECT MAX(x) FROM (SELECT CONCAT(m0.city, {text('x', 16_000)}) x FROM {medals(4)} ORDER BY m1.city LIMIT 1000000) y",
        f"SELECT RPAD(m0.city, 4000, 'x') x FROM {medals(4)} ORDER BY x LIMIT 1 OFFSET 10000000",
        f"SELECT DISTINCT RPAD(m0.medal_id, 4000, m1.medal_id) x FROM {medals(4)}"]),
    Family("not text", "refused", "refused", [
        "SELECT '\0'", "SELECT 1\0", "SELECT 1\0; DROP TABLE Medal", "\0SELECT 1", "SELECT '\ud800'", "SELECT 1 \udfff", "\ufeffSELECT 1", "SELECT\ufeff 1",
        "SELECT '" + "x" * 10_000_000 + "'", "SELECT 1" + " " * 10_000_000, "x" * 10_000_000, "(" * 10_000_000, "SELECT " + "'" * 10_000_001]),
    Family("bytes that are no text", "ok other", "ok other syntax refused", lines("""
        SELECT x'ff'
        SELECT x'00ff00'
        SELECT 0xffff
        SELECT CAST(x'ff' AS CHAR)
        SELECT CONVERT(x'c328' USING utf8mb4)
        SELECT _utf8mb4 x'ff'
        SELECT _latin1 x'ff'
        SELECT CHAR(0)
        SELECT CHAR(255, 254)
        SELECT UNHEX('ff')
        SELECT 'a' || x'00'
        SELECT '\U0001f600\u202e\u200b'""")),
    Family("deeply nested", "ok other too_large syntax", "syntax other too_large", [
        "SELECT " + "(" * 4000 + "1" + ")" * 4000, "SELECT " + "-(" * 3000 + "1" + ")" * 3000, "SELECT " + "NOT " * 2400 + "1",
        "SELECT " + "ABS(" * 1900 + "1" + ")" * 1900, "SELECT " + "(SELECT " * 900 + "1" + ")" * 900,
        "SELECT " + "CASE WHEN 1 THEN " * 450 + "1" + " END" * 450, "SELECT * FROM " + "(SELECT * FROM " * 400 + "Medal" + ") x" * 400,
        "SELECT 1 " + repeat("UNION SELECT {}", 500, " "), "SELECT " + "IF(1, " * 900 + "1" + ", 2)" * 900]),
    Family("many parts", "ok other timeout too_large", "ok other timeout too_large", [
        "SELECT COUNT(*) FROM " + medals(61) + " WHERE " + repeat("m{}.year = 0", 61, " AND "),
        "SELECT COUNT(*) FROM " + medals(62), "SELECT COUNT(*) FROM " + medals(800),
        "SELECT COUNT(*) FROM Medal m0 " + repeat("JOIN Medal m{} USING (medal_id)", 0, " ") + repeat("JOIN Medal x{} ON x{}.year = m0.year", 40, " "),
        "SELECT COUNT(*) FROM Medal m0 " + repeat("NATURAL JOIN Medal x{}", 60, " ") + " WHERE m0.year IN (" + repeat("{}", 900) + ")",
        "SELECT 1 FROM Medal WHERE " + repeat("year = {}", 600, " OR ") + " AND SQRT(year) < 0 AND year < 0"]),
    Family("broken text", "syntax", "syntax", lines("""
        SELECT
        SELECT FROM WHERE
        SELECT 'open
        SELECT (1
        SELECT 1)
        WITH
        WITH x AS (SELECT 1)
        SELECT * FROM
        SELECT * FROM Medal WHERE
        SELECT 1 1 1
        SELECT ,
        SELECT SELECT
        SELECT * FROM Medal LIMIT
        SELECT $$$ %
        WITH x SELECT 1""")),
    Family("no SQL at all", "refused", "refused", lines("""
        The answer is 42.
        ```sql
        sql SELECT 1
        ANSWER: SELECT 1
        <s>[INST] SELECT 1
        SELECTED
        WITHOUT
        1 = 1
        ' OR 1=1
        db.medals.find()
        \N{ZERO WIDTH SPACE}SELECT 1
        ＳＥＬＥＣＴ 1
        'SELECT 1'
        ;;;;x
        $(rm -rf /)
        import os""")),
]


# --------------------------------------------------------------------------------------------------------------- running
def cases(engine: str, families: Sequence[Family] = FAMILIES) -> list[tuple[Family, str]]:
    return [(family, sql) for family in families if family.expected(engine) for sql in family.queries]


def open_engine(engine: str, connections: int) -> Database:
    opener = open_private if engine == "mariadb" else open_sqlite
    return opener(DATABASES, Limits(time_limit=TIME_LIMIT, connections=connections))


def server(database: Database) -> Path:
    """The private server's entry in /proc, or ours where there is no server."""
    if not isinstance(database, MariaDB):
        return Path("/proc/self")
    (pid,) = (Path(database._server.socket).parent / "data").glob("*.pid")
    return Path("/proc") / pid.read_text().strip()


def held(process: Path, row: str = "VmRSS") -> int:
    """The memory that a process holds, in MiB."""
    return int((process / "status").read_text().partition(f"{row}:")[2].split()[0]) // 1024


def peak(process: Path) -> int:
    """The most that it has held since ``forget_peak``."""
    return held(process, "VmHWM")


def forget_peak(process: Path) -> None:
    (process / "clear_refs").write_text("5")


@dataclass(frozen=True)
class Outcome:
    family: Family
    sql: str
    execution: Execution
    seconds: float              # as its caller saw it; on SQLite, whose limit is one on the processor, of the processor


def run_one(database: Database, family: Family, sql: str) -> Outcome:
    clock = time.perf_counter if isinstance(database, MariaDB) else time.thread_time
    start = clock()
    return Outcome(family, sql, database.run(sql, "games"), clock() - start)


def run_cases(database: Database, engine: str, at_once: int,
              families: Sequence[Family] = FAMILIES) -> Iterator[tuple[list[Outcome], int, int]]:
    """A family at a time: what became of it, the highest memory of the client and of the server, in MiB."""
    ours = Path("/proc/self")
    for family in families:
        if family.expected(engine):
            forget_peak(ours)
            forget_peak(server(database))
            highest = 0
            outcomes = []
            for start in range(0, len(family.queries), at_once):
                chunk = family.queries[start:start + at_once]
                outcomes += together(database, family, chunk)
                database.run("SELECT 1", "games")               # so that there is a server to look at
                highest = max(highest, peak(server(database)))
            yield outcomes, peak(ours), highest


@dataclass(frozen=True)
class Timed:
    """A database that tells how long a query took, in the status's place: for run_all, which has threads."""

    database: Database
    outcomes: list[Outcome]
    family: Family

    def run(self, sql: str, database_name: str) -> Execution:
        self.outcomes.append(run_one(self.database, self.family, sql))
        return self.outcomes[-1].execution


def together(database: Database, family: Family, queries: Sequence[str]) -> list[Outcome]:
    timed = Timed(database, [], family)
    run_all(timed, [(sql, "games") for sql in queries], len(queries))
    return timed.outcomes


# --------------------------------------------------------------------------------------------------------------- showing
def table(engine: str, at_once: int) -> Iterator[str]:
    yield f"| {engine}, {at_once} at once | cases | became | slowest, s | client, MiB | server, MiB |"
    yield "|---|---|---|---|---|---|"
    total = 0
    with ExitStack() as stack:
        database = stack.enter_context(open_engine(engine, at_once))
        for outcomes, client, highest in run_cases(database, engine, at_once):
            assert database.run(HONEST, "games").rows == HONEST_ROWS
            family, statuses = outcomes[0].family, Counter(outcome.execution.status for outcome in outcomes)
            total += len(outcomes)
            became = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
            slowest = max(min(outcome.seconds, outcome.execution.seconds) for outcome in outcomes)
            yield (f"| {family.name} | {len(outcomes)} | {became} | {slowest:.2f} | {client} | "
                   f"{highest if engine == 'mariadb' else ''} |")
            for status in statuses.keys() - set(family.expected(engine)):
                yield f"UNEXPECTED: {status}"
    yield f"{total} cases"


def pace(engine: str) -> Iterator[str]:
    """Honest queries a second by as many threads as connections; and their longest wait while every second query is a join
    without an end, which nobody should have to wait for but its own connection."""
    yield f"| {engine}, connections | queries/s | among joins without an end: the longest, s |"
    yield "|---|---|---|"
    endless = next(family for family in FAMILIES if family.name == "cross joins").queries[0]
    for connections in (1, 4, 16):
        with open_engine(engine, connections) as database:
            database.run(HONEST, "games")
            honest = [(f"{HONEST} WHERE year > {i / 1000}", "games") for i in range(2000)]
            start = time.perf_counter()
            assert {execution.rows for execution in run_all(database, honest, connections)} == {HONEST_ROWS}
            rate = len(honest) / (time.perf_counter() - start)
            mixed = [query for i in range(16) for query in ((f"{endless} OR m0.year = {i}", "games"), honest[i])]
            executions = run_all(database, mixed, connections)
            assert [execution.status for execution in executions] == ["timeout", "ok"] * 16
            yield f"| {connections} | {rate:.0f} | {max(execution.seconds for execution in executions[1::2]):.3f} |"


if __name__ == "__main__":
    for chosen in sys.argv[1:2] or ["mariadb", "sqlite"]:
        last = sys.argv[2] if len(sys.argv) > 2 else "1"
        for line in pace(chosen) if last == "pace" else table(chosen, int(last)):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
