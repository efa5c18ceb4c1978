"""Pieces of one-sentence errors."""

from minigrpo.common.messages import shown, unknown


def test_a_near_name_is_suggested_and_a_far_one_is_not():
    assert unknown("split", "trian", ["train", "dev"]) == "unknown split 'trian' (did you mean 'train'?)"
    assert unknown("split", "zzz", ["train", "dev"]) == "unknown split 'zzz'"


def test_a_text_from_a_file_is_short_and_on_one_line():
    # 300 letters are cut to 120; a line break and a control character appear as their escapes.
    assert shown("a" * 300) == "a" * 120
    assert shown("a\nb\x1b") == "a\\nb\\x1b"
