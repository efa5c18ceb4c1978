"""Ids and back on tokenizers made on the spot, byte-level and sentencepiece-like, and on the real one where present; the automaton
that ends completions against the plain way: keep the bytes so far and look for every stop string in them."""

import json
import random

import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Rust

from minigrpo.policy.tokenizer import EOS, Tokenizer, compile_stopping, load_tokenizer, train_bpe
from minigrpo.task.sql.data.temptabqa import load_questions
from tests.temptabqa import BENCHMARK, WHY_GOLD, WITH_GOLD

TEXTS = ["SELECT name FROM athletes WHERE age > 30;\n", "naïve café — 東京 🏃‍♀️", "  two  spaces\tand tabs\r\n",
         "'it''s'"] * 4


def byte_level():
    """As GPT-2, Llama 3, Qwen and SmolLM2: bytes as printable stand-ins, merged."""
    rust = Rust(models.BPE())
    rust.pre_tokenizer, rust.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    rust.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>", "<|im_start|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    rust.add_tokens([AddedToken("    ", normalized=False), AddedToken("<tool>", normalized=False)])
    return rust


def sentencepiece(prefix_space=False):
    """As Gemma, or with ``prefix_space`` as Llama 2: ▁ for space, <0x0A> for bytes that no piece covers."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"SELCTabcdenr;'", "é", "東"]
    merges = [("S", "E"), ("L", "E"), ("SE", "LE"), ("C", "T"), ("SELE", "CT"), ("▁", "SELECT"), ("▁", "a"), ("a", "n")]
    pieces += [first + second for first, second in merges]
    rust = Rust(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True,
                           fuse_unk=True))
    space = normalizers.Replace(" ", "▁")
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prefix_space else space
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    rust.decoder = decoders.Sequence(parts + [decoders.Strip(" ", 1, 0)] * prefix_space)
    rust.add_special_tokens(["<unk>", "<s>", "</s>"])
    # Gemma's file lists runs of spaces among its added tokens, spelled with ▁, and not as special.
    rust.add_tokens([AddedToken("▁▁▁", normalized=False), AddedToken("<table>", normalized=False)])
    return rust


MADE = {"byte-level": byte_level(), "sentencepiece": sentencepiece()}
EACH = pytest.mark.parametrize("rust", MADE.values(), ids=MADE.keys())


@EACH
@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.text(max_size=20), st.text(alphabet="SELECTan ;\n▁é東🏃<>0x", max_size=20)))
def test_decode_of_encode_is_the_text(rust, text):
    # ▁ itself cannot survive a tokenizer that spells the space with it.
    text = text.replace("▁", " ") if rust is MADE["sentencepiece"] else text
    tokenizer = Tokenizer(rust, ())
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert b"".join(tokenizer.token_bytes[token] for token in tokenizer.encode(text)) == text.encode()


@EACH
def test_bytes_of_every_single_id_are_what_it_decodes_to(rust):
    """One id alone may be half a character: the decoder shows that as �, and so do its bytes decoded with "replace"."""
    tokenizer = Tokenizer(rust, ())
    assert len(tokenizer.token_bytes) == rust.get_vocab_size()
    for token, added in enumerate(tokenizer.token_bytes):
        assert added.decode("utf-8", "replace") == tokenizer.decode([token]), rust.id_to_token(token)


@EACH
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_bytes_of_any_ids_in_a_row_are_what_they_decode_to(rust, data):
    tokenizer = Tokenizer(rust, ())
    ids = data.draw(st.lists(st.integers(0, rust.get_vocab_size() - 1), max_size=12))
    added = b"".join(tokenizer.token_bytes[token] for token in ids)
    try:
        text = added.decode()
    except UnicodeDecodeError:
        return                              # both decoders mark broken characters, in different numbers
    assert tokenizer.decode(ids) == text


def test_special_tokens_add_nothing_and_added_words_add_their_text():
    for name, expected in [
            ("byte-level", {"<eos>": b"", "<|im_start|>": b"", "<tool>": b"<tool>", "    ": b"    "}),
            ("sentencepiece", {"</s>": b"", "<0x0A>": b"\n", "▁▁▁": b"   ", "<table>": b"<table>"})]:
        tokenizer = Tokenizer(MADE[name], ())
        assert {text: tokenizer.token_bytes[tokenizer.rust.token_to_id(text)] for text in expected} == expected


def test_a_tokenizer_that_drops_the_first_space_has_it_in_its_bytes():
    """Llama 2 puts a space before the text and drops it again at the start: the bytes are those of the text from then
    on."""
    tokenizer = Tokenizer(sentencepiece(prefix_space=True), ())
    ids = tokenizer.encode("SELECT an é;")
    assert tokenizer.decode(ids) == "SELECT an é;"
    assert b"".join(tokenizer.token_bytes[token] for token in ids) == " SELECT an é;".encode()


def test_without_special_tokens_a_text_is_only_itself():
    """The file's post-processor puts <s> before a prompt; not before what goes on from it."""
    rust = Rust.from_str(MADE["sentencepiece"].to_str())
    rust.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer, plain = Tokenizer(rust, ()), Tokenizer(MADE["sentencepiece"], ())
    assert tokenizer.encode("SELECT an") == [1, *plain.encode("SELECT an"), 2]
    for each in (tokenizer, plain):
        assert each.encode("SELECT an", special=False) == plain.encode("SELECT an")


# ------------------------------------------------------------------------------------------------------- one of our own
NAMES = ["Ana", "Zoë", "Björk", "Oslo"]
OURS = [text for name in NAMES for text in (
    f"Tables:\nAthlete(athlete_id, name)\nQuestion: Where has {name} won 12 medals?\nSQL:\n",
    f"SELECT Medal.location FROM Athlete WHERE Athlete.name = '{name}' AND birth_year < 1980")] * 3
TRAINED = train_bpe(OURS, 400)


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(
    st.text(max_size=30), st.text(max_size=30, alphabet="SELECTan ;'\"\n\t\r_09(.é東🏃\u0301\u00a0\u200dǅ<>os")))
def test_any_text_comes_back_from_a_trained_bpe(text):
    """Whatever it was trained on: every byte has a token, so no text has a sign without one. (Only "<eos>" written out is the
    stop token, as with any such file.)"""
    tokenizer = Tokenizer(TRAINED, (0,))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes[token] for token in ids) == text.encode()
    assert ids == tokenizer.encode(text, special=False)                    # it adds nothing of its own


def test_every_byte_has_a_token_and_eos_is_id_0():
    tokenizer = Tokenizer(TRAINED, (0,))
    assert TRAINED.token_to_id(EOS) == 0 and tokenizer.token_bytes[0] == b""
    assert {bytes([byte]) for byte in range(256)} <= set(tokenizer.token_bytes)
    assert len(set(tokenizer.token_bytes)) == TRAINED.get_vocab_size()       # and no two tokens are the same bytes


@pytest.mark.parametrize("size", [257, 258, 300, 10_000])
def test_a_trained_bpe_is_no_larger_than_asked(size):
    """One id for <eos> and 256 for the bytes are the least; then merges, until the size is reached or nothing is left to
    merge."""
    got = train_bpe(OURS, size).get_vocab_size()
    assert got == size if size <= 300 else 300 < got < size
    assert train_bpe([], size).get_vocab_size() == 257


def test_a_trained_bpe_is_a_pure_function_of_its_texts():
    assert train_bpe(iter(OURS), 400).to_str() == TRAINED.to_str()
    assert train_bpe(OURS[1::2], 400).to_str() != TRAINED.to_str()


def test_words_are_not_merged_with_signs():
    """No token has both: letters, digits and underscores on one side, other signs on the other; a newline is by itself."""
    for added in Tokenizer(TRAINED, ()).token_bytes:
        text = added.decode("utf-8", "ignore")                              # half a character says nothing
        assert len({sign.isalnum() or sign == "_" for sign in text.removeprefix(" ")}) <= 1, added
        assert "\n" not in text or text == "\n"


# ------------------------------------------------------------------------------------------------------------- the file
def write(folder, rust=MADE["byte-level"], **files):
    rust.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_the_files_own_post_processor_adds_bos(tmp_path):
    rust = Rust.from_str(MADE["sentencepiece"].to_str())
    rust.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = load_tokenizer(write(tmp_path, rust))
    assert tokenizer.encode("an") == [1, *Tokenizer(MADE["sentencepiece"], ()).encode("an")]
    assert tokenizer.decode(tokenizer.encode("an")) == "an"


def test_an_added_token_is_found_by_its_text_and_no_other_is():
    """<|im_start|> is special, <tool> is not, both are one id wherever they stand; "SELECT" may be one id too, but behind a
    letter it is not."""
    tokenizer = Tokenizer(MADE["byte-level"], ())
    for text in ("<|im_start|>", "<tool>"):
        assert tokenizer.added_token(text) in tokenizer.encode(f"a{text}b")
        assert tokenizer.encode(text) == [tokenizer.added_token(text)]
    assert tokenizer.added_token("SELECT") is None and tokenizer.added_token("<|im_end|>") is None


def test_a_stop_id_is_no_text_even_where_the_file_calls_it_ordinary():
    rust = MADE["byte-level"]
    tool = rust.token_to_id("<tool>")
    ids = rust.encode("SELECT").ids + [tool]
    assert Tokenizer(rust, ()).decode(ids) == "SELECT<tool>"
    assert Tokenizer(rust, (tool,)).decode(ids) == "SELECT"


def test_truncation_and_padding_settings_of_the_file_do_not_touch_prompts(tmp_path):
    """A tokenizer.json can carry the truncation and padding of whoever saved it; a prompt is never cut in silence."""
    rust = Rust.from_str(MADE["byte-level"].to_str())
    rust.enable_truncation(3)
    rust.enable_padding(length=5)
    tokenizer, text = load_tokenizer(write(tmp_path, rust)), "SELECT name FROM athletes; and more words"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("'")) == 1


@pytest.mark.parametrize("files, expected", [
    ({}, ()),
    ({"config": {"eos_token_id": 7}}, (7,)),
    ({"config": {"eos_token_id": 0}}, (0,)),
    ({"config": {"eos_token_id": None}, "generation_config": {"eos_token_id": [3, 4]}}, (3, 4)),
    ({"config": {"eos_token_id": 7}, "generation_config": {"eos_token_id": [107, 7]}}, (7, 107)),
])
def test_stop_ids_are_those_of_both_files_together(tmp_path, files, expected):
    assert load_tokenizer(write(tmp_path, **files)).stop_ids == expected


@pytest.mark.parametrize("content", [None, "{", "", "{}", "[]", '{"model": {"type": "Unheard"}}'])
def test_a_missing_or_broken_file_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError) as error:
        load_tokenizer(tmp_path)
    assert "tokenizer.json" in str(error.value) and str(tmp_path) in str(error.value)


# --------------------------------------------------------------------------------------------------------- transformers
@pytest.mark.parametrize("vocabulary, got", [
    ({"a": 0, "b": 4 * 10**9}, "2 ids up to 4,000,000,000"), ({"a": 0, "b": 0}, "1 ids up to 0"), ({}, "0 ids up to 0")])
def test_ids_that_no_list_could_hold_or_two_texts_share_are_refused(tmp_path, vocabulary, got):
    (tmp_path / "tokenizer.json").write_text(json.dumps(
        {"added_tokens": [], "model": {"type": "WordLevel", "unk_token": "a", "vocab": vocabulary}}))
    with pytest.raises(ValueError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value) == (f"{tmp_path}/tokenizer.json: expected a token or more, each with an id of its own below "
                                 f"4,194,304, got {got}")


def test_what_only_looks_like_a_byte_is_a_text():
    """<0x+1> is no byte of two digits."""
    rust = Rust(models.BPE({"<unk>": 0, "<0x41>": 1, "<0x+1>": 2, "<0xZZ>": 3}, [], unk_token="<unk>", byte_fallback=True))
    assert Tokenizer(rust, ()).token_bytes[1:] == [b"A", b"<0x+1>", b"<0xZZ>"]


def with_bos(rust):
    """As Llama and Gemma: the file's post-processor puts <s> before a text."""
    rust = Rust.from_str(rust.to_str())
    rust.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", rust.token_to_id("<s>"))])
    return rust


FILES = MADE | {"Llama 2's": with_bos(sentencepiece(prefix_space=True)), "Gemma's": with_bos(sentencepiece())}
NAMES = ["Christine Stückelberger", "Poreč", "Dvořák-Ångström, Zoë", "e\u0301 as two signs", "東京 大坂なおみ",
         "🏃‍♀️👩🏽‍🚀", "יעל ארד", "Лариса Латынина", "\u200bzero\u00a0width", "ﬁ ǅ ß ẞ İı",
         "\ud7ff\U0010ffff", "O'Neil; \"q\" \\n\t\r\n"]


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """files(name) → (our tokenizer, transformers') of one tokenizer.json."""
    def make(name):
        folder = tmp_path_factory.mktemp("tokenizer")
        FILES[name].save(str(folder / "tokenizer.json"))
        return load_tokenizer(folder), transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return make


def different(ours, theirs, texts):
    """Whether any text has other ids, or those ids another text, than in transformers."""
    ids = [ours.encode(text) for text in texts]
    return (ids != theirs(texts)["input_ids"]
            or [ours.decode(row) for row in ids] != theirs.batch_decode(ids, skip_special_tokens=True))


@pytest.mark.parity
@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=12) | st.text(alphabet="SELECTan ;\n▁é東🏃<>0x", max_size=20), min_size=1, max_size=5))
def test_ids_and_text_equal_those_of_transformers(files, parity, name, texts):
    (ours, theirs), texts = files(name), TEXTS + NAMES + texts
    parity("ids and text, byte-level and sentencepiece", "transformers", different(ours, theirs, texts), bound=0,
           cases=len(texts))
    assert [ours.encode(text, special=False) for text in texts] == theirs(texts, add_special_tokens=False)["input_ids"]


STOPS = [[";"], ["SELECT a"], ["  ", "é;"], ["an an"], ["東"], [" SELECT"], ["aa", "ana"], ["<tool>;"]]


def first_ends(ours, theirs, stop_strings, ids_BT):
    """After how many tokens each row ends (T + 1: not at all), by our automaton and by transformers' criterion."""
    stopping, criterion = (compile_stopping(ours.token_bytes, [], stop_strings),
                           transformers.StopStringCriteria(theirs, stop_strings))
    state_B, by_us, by_them = torch.zeros(len(ids_BT), dtype=torch.long), [], []
    for length, ids_B in enumerate(ids_BT.T, 1):
        by_us.append(stopping.ends_UV[state_B, ids_B])
        state_B = stopping.next_UV[state_B, ids_B]
        by_them.append(criterion(ids_BT[:, :length], None))
    return (torch.stack([*ends, torch.ones(len(ids_BT), dtype=torch.bool)]).long().argmax(0) + 1 for ends in (by_us, by_them))


def equally_stopped(parity, ours, theirs, stop_strings):
    """On 200 completions of 12 tokens: pieces of the stop strings, each turned into tokens by itself, so that strings are cut
    in many ways, and tokens at random, half characters too. None is special: those are text to transformers' criterion
    alone."""
    draw, ordinary = random.Random(0), [token for token, added in enumerate(ours.token_bytes) if added]

    def completion():
        ids = []
        while len(ids) < 12:
            text = draw.choice(stop_strings)
            start = draw.choice([0, 0, draw.randrange(len(text))])
            piece = text[start:start + draw.randint(1, len(text))]
            ids += ours.encode(piece, special=False) if draw.random() < 0.6 else [draw.choice(ordinary)]
        return ids[:12]

    got, expected = first_ends(ours, theirs, stop_strings, torch.tensor([completion() for _ in range(200)]))
    parity("where stop strings end a completion", "transformers", not got.equal(expected), bound=0, cases=200)
    assert 0.1 < (got <= 12).float().mean() and len(got.unique()) > 3                          # here and there


@pytest.mark.parity
@pytest.mark.parametrize("name", FILES)
def test_stop_strings_end_a_completion_with_the_token_with_which_they_do_in_transformers(files, parity, name):
    for stop_strings in STOPS:
        equally_stopped(parity, *files(name), stop_strings)


# ----------------------------------------------------------------------------------------------------- the real tokenizer
@pytest.fixture(scope="module")
def real(smollm2):
    return load_tokenizer(smollm2), transformers.AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def benchmark_texts():
    """Questions, answers and gold SQL of the benchmark."""
    if not WITH_GOLD:
        pytest.skip(WHY_GOLD)
    asked = [question for split in ("train", "dev", "original", "counterfactual")
             for question in load_questions(BENCHMARK, split, gold_sql=BENCHMARK / "gold_sql.jsonl")]
    return [text for question in asked for text in (question.text, question.answer, question.gold_sql) if text]


@pytest.mark.slow
@pytest.mark.parity
def test_every_question_and_query_of_the_benchmark_has_the_ids_of_transformers_and_comes_back(real, parity, benchmark_texts):
    ours, theirs = real
    assert len(benchmark_texts) > 10_000 and sum(not text.isascii() for text in benchmark_texts) > 200
    parity("ids and text, SmolLM2 on the benchmark", "transformers", different(ours, theirs, benchmark_texts), bound=0,
           cases=len(benchmark_texts))
    assert [ours.decode(ours.encode(text)) for text in benchmark_texts] == benchmark_texts


@pytest.mark.slow
@pytest.mark.parity
def test_smollm2_on_names_turns_and_single_ids(real, parity):
    """Its file has no post-processor: nothing stands before a text. Turns are special tokens, which are no text."""
    ours, theirs = real
    turns = ["<|im_start|>user\nHello<|im_end|>", "a<|endoftext|>b", "<|im_start|> SELECT"]
    parity("ids and text, SmolLM2 on the benchmark", "transformers", different(ours, theirs, TEXTS + NAMES + turns), bound=0,
           cases=len(TEXTS + NAMES + turns))
    assert all(ours.decode(ours.encode(text)) == text for text in TEXTS + NAMES)
    assert ours.encode(turns[0])[0] == ours.added_token("<|im_start|>") == 1 and ours.encode("Hello")[0] != 1
    for token, added in enumerate(ours.token_bytes):
        assert added.decode("utf-8", "replace") == ours.decode([token])


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("stop_strings", [[";"], ["\nQuestion:", "### Answer"], ["SELECT * FROM"], ["é", "東京"]])
def test_smollm2_stops_at_strings_where_transformers_does(real, parity, stop_strings):
    equally_stopped(parity, *real, stop_strings)


@pytest.mark.slow
def test_smollm2_stops_at_what_its_file_says(real, smollm2):
    """One id there; a template adds the end of its turns."""
    [end] = real[0].stop_ids
    assert end == transformers.GenerationConfig.from_pretrained(smollm2).eos_token_id
    assert load_tokenizer(smollm2, stop_ids=(0, end)).stop_ids == (0, end)


# --------------------------------------------------------------------------------- the automaton against the plain way
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
