"""sqlite_text.py compared with the engines: the ways SQLite lets a name be written, and what MariaDB refuses."""

from collections.abc import Iterator

import pytest

from minigrpo.task.sql.engines.mariadb import MariaDB, open_private
from minigrpo.task.sql.engines.sqlite import open_sqlite
from minigrpo.task.sql.engines.sqlite_text import MAX_EXPANSIONS, expansions, named_twice, text_objection
from tests.mariadb_server import skip_without_mariadb
from tests.task.sql.engines.test_sqlite import OWNER, PET, doubling

NOT_UNIQUE = 1066           # MariaDB's error number


def test_expansions_bound_the_copies():
    """c1 copies c0 twice, c2 copies c1 twice, …: 2^n copies of c0 for n levels, and c_n is mentioned once more."""
    assert [expansions(doubling(n)) for n in (0, 1, 8)] == [1, 2, 256]
    assert expansions(doubling(8)) <= MAX_EXPANSIONS < expansions(doubling(9))
    assert text_objection(doubling(8)) == "" and "expansions" in text_objection(doubling(9))


@pytest.mark.parametrize("spelling", ["[c{}]", "`c{}`", '"c{}"', "'c{}'", "C{}"])
def test_spelling_does_not_hide_a_mention(spelling):
    """SQLite takes each for the same table. It is valid, and counts like the plain name."""
    sql = doubling(3, f"c{{next}} AS (SELECT p.x FROM {spelling} p, c{{}} q)")
    assert expansions(sql) == 8
    with open_sqlite({"pets": [PET]}) as db:
        assert db.run(sql, "pets").rows == ((1,),)


# ------------------------------------------------------------------------------------------- one name for two tables
ONE_NAME = [
    ("Pet JOIN Pet ON 1 = 1", "Pet"), ("Pet, Pet", "Pet"), ("Pet p JOIN Pet AS p USING (pet_id)", "p"), ("Pet, Pet p, Pet", "Pet"),
    ("`Pet` NATURAL JOIN Pet", "Pet"), ("Pet Owner LEFT JOIN Owner ON 1 = 1", "Owner"),
    ("(SELECT * FROM Pet) x CROSS JOIN (SELECT * FROM Pet) x", "x"), ("Pet WHERE pet_id IN (SELECT Pet.pet_id FROM Pet, Pet)", "Pet"),
    ("Owner UNION SELECT 1 FROM Pet, Pet", "Pet"), ("Pet JOIN Owner ON Pet.owner_id = Owner.owner_id JOIN Pet ON 1 = 1", "Pet"),
]
TWO_NAMES = [
    "Pet JOIN Pet p ON p.name = Pet.name", "Pet, Pet AS other ORDER BY 1, 1", "Pet WHERE 1 IN (SELECT COUNT(*) FROM Pet)",
    "Pet UNION SELECT 1 FROM Pet", "(SELECT * FROM Pet) x, (SELECT * FROM Pet) y", "Pet WHERE Pet.name = 'a, Pet' GROUP BY Pet.name",
    "(SELECT * FROM Pet) x CROSS JOIN Pet x",
    "Pet p JOIN Owner ON p.name = Owner.name WHERE p.name <> 'Pet' LIMIT 1", "Pet p INNER JOIN Pet q ON p.name = q.name AND p.name = 'x'",
    "Pet JOIN (SELECT name FROM Owner) AS b", "Pet p, Pet P", "(Pet JOIN Owner ON 1 = 1) JOIN (Pet p JOIN Owner o ON 2 = 2)",
]


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaDB]:
    skip_without_mariadb()
    with open_private({"pets": (OWNER, PET)}) as opened:
        yield opened


@pytest.mark.parametrize("sources, name", ONE_NAME)
def test_one_name_for_two_tables_is_refused_as_mariadb_refuses_it(mariadb, sources, name):
    sql = f"SELECT COUNT(*) FROM {sources}"
    theirs = mariadb.run(sql, "pets")
    assert theirs.status == "other" and theirs.code == NOT_UNIQUE
    with open_sqlite({"pets": [OWNER, PET]}) as sqlite:
        ours = sqlite.run(sql, "pets")
    assert ours.status == "other" and ours.error == f"Not unique table/alias: {name!r}" and theirs.error.endswith(ours.error)


@pytest.mark.parametrize("sources", TWO_NAMES)
def test_what_has_two_names_is_not_refused(mariadb, sources):
    """MariaDB runs these statements. Whether SQLite runs them too (p and P are one name to it) is not tested here."""
    sql = f"SELECT COUNT(*) FROM {sources}"
    assert named_twice(sql) == "" and mariadb.run(sql, "pets").ok


def test_a_long_text_takes_no_time():
    """Nested brackets, and many tables: each is read once."""
    assert named_twice("SELECT " + "(" * 4_900 + "1" + ")" * 4_900) == ""
    assert named_twice("SELECT 1 FROM " + ", ".join(f"a b{i}" for i in range(1_200)) + ", a b7") == "b7"
