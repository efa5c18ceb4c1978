"""What ends a program with one sentence, and what keeps its traceback."""

import pytest

from minigrpo.common.errors import TaskError, UserError, shown, unknown
from minigrpo.common.process import exit_status


@pytest.mark.parametrize("error", [UserError("model.path is missing"), TaskError("the server is gone"), OSError("disk full"),
                                   MemoryError("too large"), FloatingPointError("five steps")])
def test_what_a_user_can_mend_is_one_sentence_and_status_1(error, capsys):
    def recipe() -> int:
        raise error

    assert exit_status("train.py", recipe) == 1
    assert capsys.readouterr().err == f"train.py: {error}\n"


def test_a_bug_of_ours_keeps_its_traceback():
    """A wrong shape is a ValueError of ``check``: the user can do nothing about it, and needs the place to report it."""
    def recipe() -> int:
        raise ValueError("logp_BC: expected [B, C], got [3]")

    with pytest.raises(ValueError, match="logp_BC"):
        exit_status("train.py", recipe)


def test_a_near_name_is_suggested_and_a_far_one_is_not():
    assert unknown("split", "trian", ["train", "dev"]) == "unknown split 'trian' (did you mean 'train'?)"
    assert unknown("split", "zzz", ["train", "dev"]) == "unknown split 'zzz'"


def test_a_text_from_a_file_is_short_and_on_one_line():
    # 300 letters are cut to 120; a line break and a control character appear as their escapes.
    assert shown("a" * 300) == "a" * 120
    assert shown("a\nb\x1b") == "a\\nb\\x1b"
