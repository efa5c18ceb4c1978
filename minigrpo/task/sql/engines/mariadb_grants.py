"""What an account may do on MariaDB, read from the lines of SHOW GRANTS. Needs no server.

On someone else's database, the account's rights are the guard. A read-only transaction is not: DROP succeeds in it.
"""

import re
from collections.abc import Iterable

READING = {"USAGE", "SELECT", "SHOW VIEW", "SHOW DATABASES", "SHOW CREATE ROUTINE"}

QUOTED = r"""(?:`[^`]*`|'[^']*'|"[^"]*")+"""                # a doubled quote is two of them side by side
NAME = rf"(?:{QUOTED}|[^\s`'\"@]+)"                         # servers before 10.4 write plain names without quotes
ROLE = re.compile(rf"GRANT ({NAME}) TO {NAME}@{NAME}.*", re.S)


def beyond_reading(lines: Iterable[str]) -> list[str]:
    """The rights that go beyond reading, each once. A line in an unknown form is returned whole.

    >>> beyond_reading(["GRANT SELECT (`a`, `DROP`), INSERT (`a`) ON `shop`.* TO `me`@`%` WITH GRANT OPTION"])
    ['INSERT', 'GRANT OPTION']
    """
    found: list[str] = []
    for line in lines:
        bare = re.sub(QUOTED, "x", line)                    # a name may contain any word, and messages must not show hashes
        if rights := re.fullmatch(r"GRANT (.+?) ON .+", bare, re.S):
            found += [right for right in re.sub(r" ?\(.*?\)", "", rights[1]).split(", ") if right not in READING]
        elif not re.match(r"SET DEFAULT ROLE |GRANT \S+ TO ", bare):            # a role: its rights have lines of their own
            found.append(bare)
        found += re.findall(r"(?:GRANT|ADMIN) OPTION", bare)
    return list(dict.fromkeys(found))


def roles(lines: Iterable[str]) -> list[str]:
    """The roles that the account may turn on, as SHOW GRANTS writes them.

    >>> roles(["GRANT `readers` TO `me`@`%`", "GRANT `inner` TO `readers`", "GRANT SELECT ON `a`.* TO `me`@`%`"])
    ['`readers`']
    """
    return [role[1] for role in map(ROLE.fullmatch, lines) if role]
