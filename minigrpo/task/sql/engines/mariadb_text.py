"""Checks of a query's text before it is sent to MariaDB: those of guard.py, and a list of permitted functions."""

import re

from minigrpo.task.sql.engines.guard import objection

# One quoted text or name, as the server reads it under the sql_mode that mariadb.py sets.
QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*+(?:'|\\?\Z)|"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|`[^`]*(?:`|\Z)""", re.S)

# Left out on purpose: functions that wait, read files, lock, keep state, describe the server, or make short texts long.
FUNCTIONS = frozenset("""
    avg bit_and bit_or bit_xor count group_concat max median min std stddev stddev_pop stddev_samp sum var_pop var_samp
    variance cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank percentile_cont percentile_disc
    rank row_number
    ascii char char_length character_length chr concat concat_ws elt field find_in_set format hex insert instr lcase left
    length locate lower lpad ltrim mid octet_length ord position quote regexp_instr regexp_substr replace reverse right rpad
    rtrim strcmp substr substring substring_index trim ucase unhex upper
    case coalesce greatest if ifnull interval isnull least nullif nvl nvl2
    abs acos asin atan atan2 ceil ceiling conv cos cot degrees exp floor ln log log10 log2 mod pi pow power radians round sign
    sin sqrt tan truncate
    adddate addtime curdate current_date current_time current_timestamp curtime date date_add date_format date_sub datediff
    day dayname dayofmonth dayofweek dayofyear extract from_days hour last_day localtime localtimestamp makedate maketime
    microsecond minute month monthname now period_add period_diff quarter sec_to_time second str_to_date subdate subtime time
    time_format time_to_sec timediff timestamp timestampadd timestampdiff to_days utc_date utc_time utc_timestamp week weekday
    weekofyear year yearweek
    binary cast convert
""".split())
# Words that a bracket may follow although they are no functions.
PERMITTED = FUNCTIONS | frozenset("""
    all and any as between by distinct div else escape except exists from group having in index intersect is join key like
    limit not offset on or over partition regexp rlike row select some straight_join then union using values when where xor
    dec decimal datetime double fixed float integer nchar nvarchar numeric signed unsigned varbinary varchar
""".split())
# Standard SQL calls these without a bracket; they tell which account asks. In quotes, each is the name of a column.
FORBIDDEN_WORD = re.compile(r"\b(?:into|current_role|current_user|session_user|system_user)\b")
# A number, which may end right before a letter: 1.5INTO is two words, and so is \NINTO; but 1INTO is a name.
NUMBER = re.compile(r"(?<![\w$])(?:[0-9]++\.[0-9]*+|\.[0-9]++|[0-9]++(?=e[-+]?[0-9]))(?:e[-+]?[0-9]++)?+|\\n")
CALL = re.compile(r"(?:''|\b[\w$]++)(?=\s*+\()")
WITH_TABLE = re.compile(r"(\b(?:with|recursive)\s|,)\s*(?:''|[\w$]+)\s*\([^()]*\)\s*as\s*\(")          # with columns named


def text_objection(sql: str) -> str:
    """Why this text is not sent to MariaDB, or "".

    >>> text_objection("SELECT COUNT(*) FROM t"), text_objection("SELECT Sleep (9)"), text_objection("SELECT `sleep`(9)")
    ('', 'the function sleep is not permitted', 'a quoted function is not permitted')
    """
    if reason := objection(sql, QUOTED):
        return reason
    lower = sql.lower()
    if "information_schema" in lower or "performance_schema" in lower:      # every account may read these
        return "the server's own tables are not permitted"
    bare = NUMBER.sub(r"\g<0> ", QUOTED.sub("''", lower))
    if word := FORBIDDEN_WORD.search(bare):
        return f"{word[0].upper()} is not permitted"
    for called in CALL.findall(WITH_TABLE.sub(r"\1", bare) if "with" in bare else bare):
        if called not in PERMITTED:
            return ("a quoted function" if called == "''" else f"the function {called}") + " is not permitted"
    return ""
