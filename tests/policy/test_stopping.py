"""The automaton against the plain way: keep the bytes so far and look for every stop string in them."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minigrpo.policy.stopping import compile_stopping


def ends_by_search(token_bytes, stop_ids, stop_strings, tokens):
    """For each token of a completion: has it ended with it? By string search in everything added so far."""
    text, ended, out = b"", False, []
    for token in tokens:
        text += token_bytes[token]
        ended = ended or token in stop_ids or any(needle.encode() in text for needle in stop_strings)
        out.append(ended)
    return out


def ends_by_automaton(stopping, tokens):
    state, out = 0, []
    for token in tokens:
        out.append(bool(stopping.ends_UV[state, token]))
        state = int(stopping.next_UV[state, token])
    return out


@settings(max_examples=500, deadline=None)
@given(token_bytes=st.lists(st.text("ab;é", max_size=4).map(str.encode) | st.sampled_from([b"\xc3", b"\xa9", b"\xa9a"]),
                            min_size=1, max_size=8),
       stop_strings=st.lists(st.text("ab;é", min_size=1, max_size=5), max_size=4), data=st.data())
def test_equals_string_search_over_the_bytes_so_far(token_bytes, stop_strings, data):
    ids = st.integers(0, len(token_bytes) - 1)
    stop_ids, tokens = data.draw(st.lists(ids, max_size=2)), data.draw(st.lists(ids, max_size=12))
    stopping = compile_stopping(token_bytes, stop_ids, stop_strings)
    assert ends_by_automaton(stopping, tokens) == ends_by_search(token_bytes, stop_ids, stop_strings, tokens)


@pytest.mark.parametrize("stop_strings, pieces, expected", [
    ((";",), ["a", "b;", "c"], [0, 1, 1]),                               # inside a token, and ended for good
    ((";",), [";a"], [1]),                                               # wherever in the token
    (("\n\n",), ["a\n", "\nb"], [0, 1]),                                 # over two tokens, in the middle of both
    (("aab",), ["a", "a", "a", "b"], [0, 0, 0, 1]),                      # the third a starts again from the second
    (("abc",), ["a", "", "b", "c"], [0, 0, 0, 1]),                       # a special token adds nothing in between
    (("abc",), ["a", "x", "bc"], [0, 0, 0]),                             # a foreign byte breaks the match
    (("abab", "ba"), ["a", "b", "c", "b", "a"], [0, 0, 0, 0, 1]),
    (("abcd", "bc"), ["a", "b", "c"], [0, 0, 1]),                        # the shorter one hides inside the longer
    (("é",), ["e", "caf", "é"], [0, 0, 1]),
    ((), ["a", ";"], [0, 0]),
])
def test_by_hand(stop_strings, pieces, expected):
    stopping = compile_stopping([piece.encode() for piece in pieces], [], stop_strings)
    assert ends_by_automaton(stopping, range(len(pieces))) == [bool(end) for end in expected]


def test_stop_string_split_inside_a_character():
    # "é" is C3 A9: two tokens of one byte each complete it.
    stopping = compile_stopping([b"\xc3", b"\xa9"], [], ["é"])
    assert ends_by_automaton(stopping, [1, 0, 0, 1]) == [False, False, False, True]


def test_states_are_the_proper_prefixes_and_the_end():
    # "ab" and "ac": "", "a" and ended. Three states.
    stopping = compile_stopping([b"a", b"b", b"c", b""], [3], ["ab", "ac"])
    assert stopping.next_UV.tolist() == [[1, 0, 0, 2], [1, 2, 2, 2], [2, 2, 2, 2]]
    assert stopping.ends_UV.equal(stopping.next_UV == 2)


def test_stop_ids_alone_and_nothing_at_all():
    stopping = compile_stopping([b"a", b"b", b"c"], [0, 2], [])
    assert stopping.ends_UV.tolist() == [[True, False, True], [True] * 3]
    assert compile_stopping([b"a", b"b"], [], []).ends_UV.tolist() == [[False] * 2, [True] * 2]


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="empty"):
        compile_stopping([b"a"], [], [";", ""])


def test_tables_move_together():
    stopping = compile_stopping([b"a", b"b"], [0], ["b"]).to(torch.device("meta"))
    assert stopping.next_UV.device.type == stopping.ends_UV.device.type == "meta"


@settings(max_examples=100, deadline=None)
@given(st.permutations(["ab", "b;", "a;a", "ab"]), st.lists(st.integers(0, 3), max_size=10))
@example(["ab", "ab"], [0, 1])
def test_order_and_repetition_of_stop_strings_do_not_matter(stop_strings, tokens):
    token_bytes = [b"a", b"b", b";", b"ba"]
    assert ends_by_automaton(compile_stopping(token_bytes, [], stop_strings), tokens) == ends_by_automaton(
        compile_stopping(token_bytes, [], sorted(set(stop_strings))), tokens)


@pytest.mark.slow
def test_long_stop_strings_over_the_vocabulary_of_smollm2(smollm2):
    from minigrpo.policy.tokenizer import load_tokenizer
    tokenizer = load_tokenizer(smollm2)
    stop_strings = ["\nQuestion:", "### Answer", "SELECT * FROM"]
    stopping = compile_stopping(tokenizer.token_bytes, tokenizer.stop_ids, stop_strings)
    for text in ("What?\n\nQuestion: who", "a ### Answer b", "SELECT * FRO SELECT * FROM x", "nothing of it"):
        tokens = tokenizer.encode(text)
        assert ends_by_automaton(stopping, tokens) == ends_by_search(
            tokenizer.token_bytes, tokenizer.stop_ids, stop_strings, tokens)
