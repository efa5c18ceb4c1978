"""What an account may do on MariaDB, read off the lines of its SHOW GRANTS. Knows no server.

On a database that is somebody's own, rights are the guard: a read-only transaction is none, DROP succeeds in it.
"""

import re
from collections.abc import Iterable

READING = {"USAGE", "SELECT", "SHOW VIEW", "SHOW DATABASES", "SHOW CREATE ROUTINE"}

QUOTED = r"""(?:`[^`]*`|'[^']*'|"[^"]*")+"""                # a doubled quote joins two of them
NAME = rf"(?:{QUOTED}|[^\s`'\"@]+)"                         # servers before 10.4 write plain names without quotes
ROLE = re.compile(rf"GRANT ({NAME}) TO {NAME}@{NAME}.*", re.S)


def beyond_reading(lines: Iterable[str]) -> list[str]:
    """The rights that are more than reading, each once; of a line that is not understood, the line.

    >>> beyond_reading(["GRANT SELECT (`a`, `DROP`), INSERT (`a`) ON `shop`.* TO `me`@`%` WITH GRANT OPTION"])
    ['INSERT', 'GRANT OPTION']
    """
    found: list[str] = []
    for line in lines:
        bare = re.sub(QUOTED, "x", line)                    # a name may hold any word; a password's hash is not for messages
        if rights := re.fullmatch(r"GRANT (.+?) ON .+", bare, re.S):
            found += [right for right in re.sub(r" ?\(.*?\)", "", rights[1]).split(", ") if right not in READING]
        elif not re.match(r"SET DEFAULT ROLE |GRANT \S+ TO ", bare):            # a role; what it may do has lines of its own
            found.append(bare)
        found += re.findall(r"(?:GRANT|ADMIN) OPTION", bare)
    return list(dict.fromkeys(found))


def roles(lines: Iterable[str]) -> list[str]:
    """The roles that the account may turn on, as they are spelled there.

    >>> roles(["GRANT `readers` TO `me`@`%`", "GRANT `inner` TO `readers`", "GRANT SELECT ON `a`.* TO `me`@`%`"])
    ['`readers`']
    """
    return [role[1] for role in map(ROLE.fullmatch, lines) if role]
