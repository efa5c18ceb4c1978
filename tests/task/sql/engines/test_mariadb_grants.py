"""Lines as MariaDB writes them: which account may do more than read."""

import pytest

from minigrpo.task.sql.engines.mariadb_grants import beyond_reading, roles

USAGE = "GRANT USAGE ON *.* TO `me`@`%` IDENTIFIED BY PASSWORD '*94BDCEBE19083CE2A1F959FD02F964C7AF4CFC29'"


@pytest.mark.parametrize("lines", [
    [USAGE],
    [USAGE, "GRANT SELECT ON `shop`.* TO `me`@`%`"],
    ["GRANT SELECT ON *.* TO `me`@`%`"],
    [USAGE, "GRANT SELECT, SHOW VIEW ON `shop`.* TO `me`@`%`"],
    [USAGE, "GRANT SELECT (`a`, `INSERT`), SHOW VIEW ON `shop`.`t` TO `me`@`%`"],
    [USAGE + " WITH MAX_QUERIES_PER_HOUR 5000"],
    ["GRANT SHOW DATABASES ON *.* TO 'me'@'%' REQUIRE SSL"],
    # Names with the words that are looked for in them, and with a quote.
    [USAGE, "GRANT SELECT ON `a``, DROP ON b TO c WITH GRANT OPTION`.* TO `ALL ON`@`%`"],
    ["GRANT `readers` TO `me`@`%`", USAGE, "GRANT SELECT ON `shop`.* TO `readers`", "SET DEFAULT ROLE `readers` FOR `me`@`%`"],
])
def test_accounts_that_only_read(lines):
    assert beyond_reading(lines) == []


@pytest.mark.parametrize("line, more", [
    ("GRANT ALL PRIVILEGES ON `shop`.* TO `me`@`%`", ["ALL PRIVILEGES"]),
    ("GRANT SELECT, INSERT, DROP ON `shop`.* TO `me`@`%`", ["INSERT", "DROP"]),
    ("GRANT SELECT (`a`), UPDATE (`b`, `c`) ON `shop`.`t` TO `me`@`%`", ["UPDATE"]),
    ("GRANT FILE ON *.* TO `me`@`%`", ["FILE"]),
    ("GRANT SUPER, PROCESS ON *.* TO `me`@`%` IDENTIFIED BY PASSWORD '*94BD'", ["SUPER", "PROCESS"]),
    ("GRANT SELECT ON *.* TO `me`@`%` WITH GRANT OPTION", ["GRANT OPTION"]),
    ("GRANT `readers` TO `me`@`%` WITH ADMIN OPTION", ["ADMIN OPTION"]),
    ("GRANT EXECUTE ON FUNCTION `shop`.`f` TO `me`@`%`", ["EXECUTE"]),     # a function may write
    ("GRANT DELETE ON `shop`.`t` TO PUBLIC", ["DELETE"]),
    ("GRANT INSERT ON `shop`.* TO `readers`", ["INSERT"]),                 # through a role
    ("GRANT PROXY ON ''@'%' TO 'me'@'%' WITH GRANT OPTION", ["PROXY", "GRANT OPTION"]),
    ("ALLOW EVERYTHING TO 'me' BY '*94BD'", ["ALLOW EVERYTHING TO x BY x"]),     # in no version we know, so it is not trusted
])
def test_accounts_that_may_do_more(line, more):
    """Wherever the line comes; and the result never contains a password's hash."""
    assert beyond_reading([line]) == beyond_reading([USAGE, line]) == beyond_reading([line, line, USAGE]) == more
    assert "94BD" not in "".join(more)


def test_the_roles_of_an_account_and_no_others():
    """As a new server and an old one write them. Roles that a role contains are left out, since they come with it."""
    assert roles([USAGE, "GRANT `read``ers` TO `me`@`%`", "GRANT old TO 'me'@'%' WITH ADMIN OPTION", "GRANT `in` TO `readers`",
                  "SET DEFAULT ROLE `readers` FOR `me`@`%`", "GRANT SELECT ON `a`.* TO `me`@`%`"]) == ["`read``ers`", "old"]
