"""Files from strangers: valid ones are written, then made to lie, and read by the readers that a user's files go through.

``python -m tests.fuzz [--cases N] [--seed S] [--case KIND/SEED/NUMBER]`` prints a table, and each failure with the name under
which ``--case`` runs it again. A case is right if it loads, twice to the same, with sizes as declared; or if it is refused by
one short sentence, a ``ValueError`` or an ``OSError``. Each runs in a child with an address space of its own limit: a crash,
a hang and a full memory are failures too.
"""

import argparse
import faulthandler
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from minigrpo.common.errors import UserError
from minigrpo.common.strict_json import JsonLines
from minigrpo.config import dump_config, load_config
from minigrpo.evaluation.compare import compare, read_rows, show_comparison
from minigrpo.evaluation.evaluate import read_predictions
from minigrpo.policy.files.weights import adapter_config, create_model, load_adapter, load_model, save_adapter
from minigrpo.policy.lora import adapter_parameters, add_lora
from minigrpo.policy.policy import load_policy
from minigrpo.policy.tokenizer import load_tokenizer
from minigrpo.reports import report
from minigrpo.reports.run_reader import read_run
from minigrpo.task.kinds import make_task
from minigrpo.task.sql.data import infobox, jsonl, temptabqa
from minigrpo.task.sql.prompt import read_examples
from minigrpo.training.folder import SUMS, load_dropped, newest_state, write_state
from minigrpo.training.run import STATE_FORM
from tests.paths import MINI
from tests.run_folders import evaluation, line, rollout, sample, step, write_run

ROOM, SECONDS = 512 << 20, 2.0                  # bytes and CPU seconds that a case may take; one that is large by intent, more
HUGE_ROOM, HUGE_SECONDS, HANGS, DRAWN = 1 << 30, 10.0, 30.0, 10.0
LONGEST = 400                                   # characters of a sentence, the folder's name left out
TEXT = "SELECT name FROM t WHERE year = 2012 AND x = 'é漢\U0001f600';\n  \t"
LORA = {"rank": 2, "alpha": 4.0, "targets": ("q_proj", "down_proj"), "rank_stabilised": False}


# --------------------------------------------------------------------------------------------------------------- lies
def deep(depth: int) -> list:
    found: list = []
    for _ in range(depth):
        found = [found]
    return found


def hostile(draw: random.Random) -> object:
    """A value that hardly any key was meant to have."""
    return draw.choice([
        None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 2**64, 10**12, 10**30, 10**400, -10**30, 0.0, -0.5, 0.5, 1e308,
        1e-320,
        1e30, float("nan"), float("inf"), "", " ", "x", "0", "a\nb", "\x00", "\x1b[2J", "\u2028", "\ud800", "../../x",
        "/etc/passwd",
        "Z" * 5000, "a,b;'\"`\\", [], {}, [[]], [None], {"": None}, {"x": {"y": 1}}, [0] * 2000, ["q"] * 2000,
        deep(200), {"a": deep(900)}, "ByteLevel", "Regex", "(a+)+b", "(", "[", "<0xZZ>", "<0x+1>", "gelu", "__import__('os')"])


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all that lies within a JSON value, but not in its depths."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        if len(path) < 12:
            yield from places(part, (*path, key))


def lie(document: object, draw: random.Random) -> object:
    """One part of a JSON value replaced, moved, doubled, renamed or taken away."""
    document = json.loads(dumps(document))
    found = list(places(document))
    if not found:
        return hostile(draw)
    # Long lists must not hide the few keys above them.
    *path, key = draw.choice([place for place in found if len(place) == draw.randint(1, max(map(len, found)))] or found)
    parent = document
    for part in path:
        parent = parent[part]
    other = document
    for part in draw.choice(found):
        other = other[part]
    what = draw.randrange(8)
    if what == 0:
        del parent[key]
    elif what == 1:
        parent[key] = json.loads(dumps(other))
    elif what == 2 and isinstance(parent, dict):
        parent[str(hostile(draw))[:6000]] = parent.pop(key)
    elif what == 3 and isinstance(parent, list):
        parent.insert(key, parent[key])
    elif what == 4 and type(parent[key]) is int:
        parent[key] += draw.choice([-1, 1, 2**16, 2**32])
    else:
        parent[key] = hostile(draw)
    return document


def dumps(document: object) -> bytes:
    try:
        return json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(document).encode()


def bend(data: bytes, draw: random.Random) -> bytes:
    """Bytes cut off, turned, put in, doubled or taken out."""
    i, j = sorted(draw.randint(0, len(data)) for _ in range(2))
    some = draw.choice([b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b"\r\n", b"\t", b'"', b"\\", b"[" * 3000, b'{"":' * 3000,
                        b"9" * 5000, b"\xef\xbb\xbf", b"\xe2\x80\xa8", draw.randbytes(8)])
    turned = bytes([draw.randrange(256)])
    return draw.choice([data[:i], data[i:], data[:i] + turned + data[i + 1:], data[:i] + some + data[i:], data[:i] + data[j:],
                        data[:j] + data[i:], data[:i] + some + data[j:], some + data, data + some])


def bent_json(file: Path, draw: random.Random) -> None:
    """A JSON file with one to three lies in it, or with a key given twice, or bent bytewise."""
    document = json.loads(file.read_text(encoding="utf-8"))
    for _ in range(draw.choice([1, 1, 2, 3])):
        document = lie(document, draw)
    data = dumps(document)
    if draw.random() < 0.1 and isinstance(document, dict) and document:
        key = draw.choice(list(document))
        data = b"{" + dumps(key) + b":" + dumps(hostile(draw)) + b"," + data[1:]
    file.write_bytes(bend(data, draw) if draw.random() < 0.25 else data)


def bent_lines(file: Path, draw: random.Random) -> None:
    """A JSONL file with a lie in one of its lines; lines doubled, missing, blank or in another order; or bent bytewise."""
    lines = file.read_bytes().splitlines()
    i = draw.randrange(len(lines))
    what = draw.randrange(10)
    if what == 0:
        lines.insert(draw.randint(0, len(lines)), draw.choice([lines[i], b"", b" \r", b"null", b"[]", b"3", b"{}"]))
    elif what == 1:
        draw.shuffle(lines)
    elif what == 2:
        del lines[i]
    else:
        lines[i] = dumps(lie(json.loads(lines[i]), draw))
    data = b"\n".join(lines) + draw.choice([b"", b"\n", b"\n", b"\n\n"])
    file.write_bytes(bend(data, draw) if draw.random() < 0.2 else data)


def bent_tensors(file: Path, draw: random.Random) -> None:
    """A safetensors file whose header lies of its own length, of a tensor's dtype, shape or place, of names; or is cut off."""
    data = file.read_bytes()
    length, = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8:8 + length]), data[8 + length:]
    names = [name for name in header if name != "__metadata__"]
    tensor, other = header[draw.choice(names)], header[draw.choice(names)]
    begin, end = tensor["data_offsets"]
    what = draw.randrange(12)
    if what == 0:
        tensor["dtype"] = draw.choice(["F64", "F16", "I8", "U8", "I64", "BOOL", "C64", "F8_E4M3", "F8_E8M0", "F4", "f32", "",
                                       3])
    elif what == 1:
        tensor["shape"] = draw.choice([[], [0], [-1], tensor["shape"][::-1], [1, *tensor["shape"]], [2**63], [2**32, 2**32],
                                       [0, 2**62], [2**64], [1.5], "x", [1] * 5000, [None], [2**31, 2**31, 4]])
    elif what == 2:
        tensor["data_offsets"] = draw.choice([
            [begin + 1, end], [begin, end + 4], [begin, end - 4], [end, begin], other["data_offsets"], [begin], [], [0, 2**63],
            [2**64 - 1, 2**64], [-4, end], [2**63, 2**63 + 4], [0, 0], "x"])
    elif what == 3:                                     # its size in bytes stays what it was
        flat = end - begin
        tensor["dtype"], tensor["shape"] = draw.choice([
            ("U8", [flat]), ("F16", [flat // 2]), ("BF16", [2, flat // 4]), ("I32", tensor["shape"]), ("F64", [flat // 8]),
            ("F32", [flat // 4, 1]), ("BOOL", [flat]), ("C64", [flat // 8]), ("U32", tensor["shape"]), ("F8_E5M2", [flat]),
            ("F4", [2 * flat]), ("F6_E3M2", [flat])])
    elif what == 4:
        header = {**header, draw.choice(["x", "a\nb", "Z" * 5000, "", "model.norm.weight.rotary_emb.inv_freq",
                                         "lm_head.weight"]):
                  draw.choice([tensor, {"dtype": "F32", "shape": [0], "data_offsets": [len(body), len(body)]}])}
    elif what == 5:
        header = {name if of is not tensor else draw.choice(["x", "y\nz", "é" * 3000]): of for name, of in header.items()}
    elif what == 6:
        header = lie(header, draw)
    elif what == 7:                                     # not a number, and none
        i = draw.randrange(max(1, len(body) // 4)) * 4
        body = body[:i] + draw.choice([b"\xff" * 4, b"\x00\x00\x80\x7f", b"\x01\x00\x00\x00"]) + body[i + 4:]
    text = dumps(header)
    if what == 8:                                       # a key given twice
        text = b"{" + dumps(names[0]) + b":" + dumps(draw.choice([other, 3, tensor | {"dtype": "I8"}])) + b"," + text[1:]
    elif what == 9:
        text = draw.choice([b"", b"{", b"[" * 2000, b"{}", b"[]", b"3", b'"\xff"', bend(text, draw), text + b" " * 99])
    said = len(text) if what != 10 else draw.choice([0, 1, 7, length - 1, length + 1, len(data), 10**8, 10**8 + 1, 2**30,
                                                     2**63,
                                                     2**64 - 1])
    data = struct.pack("<Q", said) + text + body
    file.write_bytes(bend(data, draw) if what == 11 else data)


def bent_tsv(file: Path, draw: random.Random) -> None:
    fields = [line.split(b"\t") for line in file.read_bytes().split(b"\n")]
    row = draw.choice(fields)
    for _ in range(draw.choice([1, 1, 3])):
        i = draw.randrange(len(row))
        row[i:i + draw.choice([0, 1, 1, 2])] = draw.choice([
            [], [b""], [b'"'], [b'"a\n"'], [b"x" * 140_000], [row[i], row[i]], [b"\x00"], [b"\xff"], [bend(row[i], draw)],
            [b"Questions"], [b"Country Representing: X"], [b"\r"]])
        row = row or draw.choice([other for other in fields if other])
    data = b"\n".join(b"\t".join(row) for row in fields)
    file.write_bytes(bend(data, draw) if draw.random() < 0.4 else data)


def bent_toml(file: Path, draw: random.Random) -> None:
    lines = file.read_text(encoding="utf-8").split("\n")
    for _ in range(draw.choice([1, 1, 2])):
        i = draw.randrange(len(lines))
        name, equals, _ = lines[i].partition(" = ")
        value = draw.choice(["0x" + "f" * 5000, "1e999", "nan", "-inf", "9" * 400, "1_0", "1979-05-27", "[" * 300 + "]" * 300,
                             "'''a\nb'''", '"\\uD800"', "{a = 1}", "{" * 500, "[[]]", '["a", 1]', '"' + "Z" * 5000 + '"',
                             "true",
                             "-1", "0", "1e308", '""', "=", '"a\\nb"', "1", "2", "2.5", '"x"', '["a"]'])
        lines[i] = draw.choice([*[f"{name} = {value}"] * 4, f"{name}.x = {value}", f'"{name}\\n" = 1', lines[i][:-1],
                                lines[i] * 2,
                                f"{'Z' * 3000} = 1", "[grpo]", "[[grpo]]", "[a.b.c]", "x = 1", "[" + "a." * 2000 + "b]",
                                f"{lines[i]}\n{lines[i]}", "", "# x"])
    data = "\n".join(lines).encode()
    file.write_bytes(bend(data, draw) if draw.random() < 0.2 else data)


def bent_bytes(file: Path, draw: random.Random) -> None:
    data = file.read_bytes()
    for _ in range(draw.choice([1, 2, 4])):
        data = bend(data, draw)
    file.write_bytes(data)


def bent_state(file: Path, draw: random.Random) -> None:
    """What a checkpoint says of itself, by checksums that say it is so."""
    bent_json(file, draw)
    (file.parent / SUMS).write_text(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n")


# -------------------------------------------------------------------------------------------------------------- readers
def digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(bytes(tensor.detach().contiguous().flatten().view(torch.uint8).numpy()))
    return found.hexdigest()


def read_model(folder: Path) -> object:
    model = load_model(folder, dtype=torch.float32, device="cpu")
    return digest(dict(model.named_parameters()))


def read_policy(folder: Path) -> object:
    """The policy can compute, too: log-probs of as many ids as the text has."""
    policy = load_policy(folder, dtype=torch.float32, device="cpu", stop_strings=(";",))
    ids = policy.tokenizer.encode(TEXT)[:8]
    if not all(0 <= token < policy.model.architecture.vocabulary for token in ids):
        raise AssertionError(f"ids beyond the vocabulary: {ids}")
    logits = policy.model.logits(policy.model(torch.tensor([ids or [0]])))
    assert logits.shape == (1, len(ids) or 1, policy.model.architecture.vocabulary)
    return policy.model.architecture, policy.tokenizer.stop_ids, ids, digest(dict(policy.model.named_parameters()))


def read_tokenizer(folder: Path) -> object:
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(TEXT)
    return ids, tokenizer.decode(ids), tokenizer.added_token("<eos>"), tokenizer.token_bytes, tokenizer.stop_ids


def read_adapter(folder: Path) -> object:
    model = load_model(folder, dtype=torch.float32, device="cpu")
    add_lora(model, **adapter_config(folder / "adapter"), generator=torch.Generator().manual_seed(0))
    load_adapter(model, folder / "adapter", base="base")
    assert all(parameter.isfinite().all() for parameter in adapter_parameters(model).values())
    return digest(adapter_parameters(model))


def read_benchmark(folder: Path) -> object:
    return [temptabqa.load_questions(folder, split) for split in ("train", "counterfactual")], temptabqa.load_databases(folder)


def read_context(folder: Path) -> object:
    return infobox.build_tables([infobox.parse_context((folder / "context").read_text(encoding="utf-8",
                                                                                          errors="replace"))])


def read_report(folder: Path) -> object:
    """All that a report says; its pictures, which take a second, are drawn of one in forty."""
    run = read_run(folder)
    if int(hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.glob("*.jsonl")))).hexdigest(), 16) % 40 == 0:
        return report.write_report(folder).read_text(encoding="utf-8")
    tables = [report.split_table(moments) for moments in (run.moments, {"eval.py": run.evaluated}) if any(moments.values())]
    curves = [run.curve(split) for split in ("", *run.evaluations)]
    task = make_task(run.cfg)
    return repr((tables, curves, run.seconds(), run.steps and report.phase_table(run.steps), report._how_far(run),
                 [report._sample(sample, task) for sample in run.samples]))


def read_state(folder: Path) -> object:
    state, facts = newest_state(folder, STATE_FORM)
    return state.name, facts, load_dropped(facts["dropped"])


def read_resumed(folder: Path) -> object:
    """What resuming after one step leaves of the records."""
    for file in sorted(folder.glob("*.jsonl")):
        JsonLines(file, keep=lambda record: record["step"] < 1).close()
    return [file.read_bytes() for file in sorted(folder.glob("*.jsonl"))]


def read_comparison(folder: Path) -> object:
    rows = read_rows(folder / "rows.jsonl", [])
    return show_comparison(compare(rows, rows, ("A", "B")))


# ---------------------------------------------------------------------------------------------------------------- kinds
@dataclass(frozen=True)
class Kind:
    """``base``: the folder of valid files that a case starts from; ``files``: those of them that may lie."""

    base: str
    files: tuple[str, ...]
    bend: Callable[[Path, random.Random], None]
    read: Callable[[Path], object]
    seconds: float = SECONDS


KINDS = {
    "safetensors": Kind("model", ("model.safetensors",), bent_tensors, read_model),
    "shards": Kind("shards", ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"), bent_tensors,
                   read_model),
    "shard index": Kind("shards", ("model.safetensors.index.json",), bent_json, read_model),
    "config.json": Kind("model", ("config.json",), bent_json, read_policy),
    "generation_config": Kind("model", ("generation_config.json",), bent_json, read_policy),
    "tokenizer.json": Kind("tokenizers", ("bpe/tokenizer.json", "unigram/tokenizer.json"), bent_json, read_tokenizer),
    "adapter config": Kind("adapter", ("adapter/adapter_config.json",), bent_json, read_adapter),
    "adapter tensors": Kind("adapter", ("adapter/adapter_model.safetensors",), bent_tensors, read_adapter),
    "benchmark TSV": Kind("benchmark", ("Train_set/train_set.tsv", "Test_Dataset_with_Splits/CounterFactual.tsv"), bent_tsv,
                          read_benchmark),
    "infobox": Kind("context", ("context",), bent_bytes, read_context),
    "gold_sql.jsonl": Kind("benchmark", ("gold_sql.jsonl",), bent_lines,
                           lambda folder: temptabqa.load_questions(folder, "train", folder / "gold_sql.jsonl")),
    "NAME.jsonl": Kind("lines", ("questions.jsonl",), bent_lines, lambda folder: jsonl.load_questions(folder, "questions")),
    "TOML": Kind("toml", ("config.toml",), bent_toml, lambda folder: load_config(folder / "config.toml")),
    "predictions": Kind("lines", ("predictions.jsonl",), bent_lines,
                        lambda folder: read_predictions(folder / "predictions.jsonl", "sql")),
    "examples": Kind("lines", ("examples.jsonl",), bent_lines, lambda folder: read_examples(folder / "examples.jsonl")),
    "rows.jsonl": Kind("lines", ("rows.jsonl",), bent_lines, read_comparison),
    "run's JSONL": Kind("run", ("metrics.jsonl", "samples.jsonl", "warmup.jsonl"), bent_lines, read_report, DRAWN),
    "resumed JSONL": Kind("run", ("metrics.jsonl", "samples.jsonl", "warmup.jsonl"), bent_lines, read_resumed),
    "state.json": Kind("states", ("step-000002/state.json",), bent_state, read_state),
    "run's summaries": Kind("run", ("summary.json", "eval/summary.json"), bent_json, read_report, DRAWN),
}


def write_bases(root: Path) -> None:
    """The valid files, a folder a base."""
    model, texts = root / "model", [TEXT, "CREATE TABLE Athlete (name TEXT);", "How many?"] * 3
    model.mkdir()
    create_model(model, texts, vocabulary=300, layers=1, width=16, heads=2, mlp_width=24, max_positions=64,
                 generator=torch.Generator().manual_seed(0))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 32}, "attention_bias": False, "mlp_bias": False, "head_dim": 8}))
    (model / "generation_config.json").write_text('{"eos_token_id": [0, 1], "do_sample": true}')
    shards = shutil.copytree(model, root / "shards")
    tensors = list(dict(load_model(model, dtype=torch.float32, device="cpu").named_parameters()).items())
    (shards / "model.safetensors").unlink()
    halves = {f"model-0000{i}-of-00002.safetensors": dict(half) for i, half in ((1, tensors[:5]), (2, tensors[5:]))}
    for name, half in halves.items():
        save_file(half, shards / name)
    (shards / "model.safetensors.index.json").write_text(json.dumps(
        {"metadata": {"total_size": 1}, "weight_map": {tensor: name for name, half in halves.items() for tensor in half}}))
    adapted = load_model(shutil.copytree(model, root / "adapter"), dtype=torch.float32, device="cpu")
    add_lora(adapted, **LORA, generator=torch.Generator().manual_seed(0))
    save_adapter(adapted, root / "adapter" / "adapter", base="base", **LORA)
    for name in ("bpe", "unigram"):
        (root / "tokenizers" / name).mkdir(parents=True)
    shutil.copyfile(model / "tokenizer.json", root / "tokenizers/bpe/tokenizer.json")
    (root / "tokenizers/unigram/tokenizer.json").write_text(json.dumps(UNIGRAM), encoding="utf-8")
    shutil.copytree(MINI, root / "benchmark")
    (root / "context").mkdir()
    (root / "context" / "context").write_text(temptabqa._read_records(MINI / temptabqa.SPLITS["train"])[0]["Context"],
                                              encoding="utf-8")
    (root / "toml").mkdir()
    (root / "empty.toml").write_text("")
    (root / "toml" / "config.toml").write_text(dump_config(load_config(root / "empty.toml")), encoding="utf-8")
    write_run(root / "run", config="[run]\nsteps = 3\n", metrics=[step(0), step(1), evaluation(1, 40.0), step(2)],
              warmup=[{"step": 0, "loss": 7.0, "grad_norm": 1.0, "strict": 3.0}, {"step": 1, "loss": None, "grad_norm": 1.0}],
              samples=[sample(0, rollout(1.0, "SELECT 1", 1.0), rollout(-1.0, None, -1.0, status="no_sql", rows=[],
                                                                        columns=[], error="x"))],
              summary={"steps": 2, "before": {"dev": line(30.0)}, "after": {"dev": line(60.0,
                                                                                        interval={"strict": [50.0, 70.0]},
                                                                                        blind=3.0)}},
              evaluated={"dev": line(50.0), "none": {"n": 0, "of": 0, "absent": True}})
    with write_state(root / "states", 2, {"evaluated": 2, "best": {"step": 2, "strict": 40.0},
                                          "dropped": {"count": 1, "first": "step 1: the loss"}}):
        pass
    rows = [{"split": "dev", "index": i, "kind": "1", "question": f"{i}?", "gold": "x", "sql": "SELECT '\u2028'",
             "status": "ok", "answer": "x",
             "ems": 1, "rems": 0.5, "strict": i % 2, "invented": 0, "blind": i // 2} for i in range(4)]
    lines = {"rows": rows, "predictions": [{"split": "dev", "index": i, "sql": "SELECT 1" if i else None} for i in range(3)],
             "examples": [{"question": "a?", "sql": "SELECT 'é'"}, {"question": "b?", "sql": "SELECT 2"}],
             "questions": [{"question": "How many?", "answer": answer, "database": "shop", "kind": "1", "gold_sql": "SELECT 2"}
                           for answer in (2, 2.5, "Oslo", ["a", 3])]}
    (root / "lines").mkdir()
    for name, records in lines.items():
        (root / "lines" / f"{name}.jsonl").write_bytes(b"".join(dumps(record) + b"\n" for record in records))


PIECES = ["<unk>", "<s>", "</s>", "\u2581", "\u2581SELECT", "\u2581name", *"SELECTnamefrot=;'",
          *(f"<0x{byte:02X}>" for byte in range(256))]
UNIGRAM = {
    "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
    "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                "pad_token": "<unk>"},
    "added_tokens": [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                      "special": True}
                     for i, text in enumerate(PIECES[:3])],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"},
                                                       {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\d+|\\w+|\\s+"}, "behavior": "Isolated", "invert": False},
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}]},
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                                                {"Sequence": {"id": "A", "type_id": 0}}],
                       "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                       "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
    "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                                                 {"type": "ByteFallback"},
                                                 {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": True, "vocab": [[piece, -float(i)] for i,
                                                                               piece in enumerate(dict.fromkeys(PIECES))]}}


# ----------------------------------------------------------------------------------------------------------------- huge
def rewrite(file: str, **changed: object) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changed))


def fill(file: str, *parts: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(b"".join(parts)) and None


MB = 1 << 20
HUGE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a header of 1 GB": ("safetensors", fill("model.safetensors", struct.pack("<Q", 10**9), b"{")),
    "a header of 90 MB": ("safetensors", fill("model.safetensors", struct.pack("<Q", 90 * MB),
                                              b"{" + b" " * (90 * MB - 2) + b"}")),
    "10^12 parameters": ("config.json", rewrite("config.json", vocab_size=10**6, hidden_size=10**6)),
    "10^6 layers": ("config.json", rewrite("config.json", num_hidden_layers=10**6)),
    "10^9 heads of size 10^9": ("config.json", rewrite("config.json", num_attention_heads=10**9, head_dim=10**9)),
    "1000 layers": ("config.json", rewrite("config.json", num_hidden_layers=1000)),
    "a token with the id 4 * 10^9": ("tokenizer.json", fill("bpe/tokenizer.json", dumps({"model": {
        "type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "b": 4 * 10**9}}, "added_tokens": []}))),
    "a config.json of 100 MB": ("config.json", fill("config.json", b'{"a": "', b"x" * 100 * MB, b'"}')),
    "an index of empty lists": ("shard index", fill("model.safetensors.index.json", b'{"weight_map": [', b"[]," * 20 * MB,
                                                    b"[]]}")),
    "a rank of 10^9": ("adapter config", rewrite("adapter/adapter_config.json", r=10**9)),
    "a rank of 16384": ("adapter config", rewrite("adapter/adapter_config.json", r=2**14)),
    "100,000 targets": ("adapter config", rewrite("adapter/adapter_config.json",
                                                  target_modules=[f"x{i}" for i in range(10**5)])),
    "10^6 brackets in config.json": ("config.json", fill("config.json", b"[" * 10**6)),
    "10^6 brackets in a line": ("predictions", fill("predictions.jsonl", b'{"split":' * 10**6)),
    "10^6 brackets in TOML": ("TOML", fill("config.toml", b"[run]\nout = ", b"[" * 10**6)),
    "10^6 dots in TOML": ("TOML", fill("config.toml", b"[run]\n", b"a." * 10**6, b"a = 1")),
    "a line of 100 MB": ("predictions", fill("predictions.jsonl", b'{"sql": "', b"x" * 100 * MB, b'"}\n')),
    "a line of 60 MB of empty lists": ("rows.jsonl", fill("rows.jsonl", b'{"split": [', b"[]," * 20 * MB, b"[]]}\n")),
    "an answer of 10^9 digits": ("NAME.jsonl", fill("questions.jsonl",
                                                    b'{"question": "?", "database": "d", "answer": 1e999999999}\n')),
    "an integer of 10 MB": ("NAME.jsonl", fill("questions.jsonl", b'{"question": "?", "database": "d", "answer": ',
                                               b"9" * 10 * MB, b"}\n")),
    "a field of 100 MB": ("benchmark TSV", fill("Train_set/train_set.tsv", b"Questions\tAnswers\tContext\tTypes\n",
                                                b"x" * 100 * MB, b"\ty\tz\t1\n")),
    "a quote of 100 MB, lines within": ("benchmark TSV", fill("Train_set/train_set.tsv",
                                                              b"Questions\tAnswers\tContext\tTypes\n\"", b"x\n" * 50 * MB)),
    "an infobox line of 10 MB": ("infobox", fill("context", b"A\n\nCountry Representing: X\nG\nTeam\t",
                                                 b"MedalGold | 2012 | , " * (MB // 2))),
}


# -------------------------------------------------------------------------------------------------------------- running
@dataclass
class Result:
    """What became of a kind's cases. ``failures``: case → what is wrong."""

    cases: int = 0
    loaded: int = 0
    refused: int = 0
    slowest: float = 0.0
    peak: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    sentences: Counter = field(default_factory=Counter)


def prepare(name: str, bases: Path, folder: Path) -> tuple[Kind, float, int]:
    """Write the files of a case; its kind, and its limits of seconds and of bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    what, seed, number = name.split("/")
    huge = what == "huge"
    kind = KINDS[HUGE[list(HUGE)[int(number)]][0] if huge else what]
    shutil.copytree(bases / kind.base, folder)
    if huge:
        HUGE[list(HUGE)[int(number)]][1](folder)
        chosen = folder / kind.files[0]
    else:
        draw = random.Random(name)
        chosen = folder / draw.choice(kind.files)
        kind.bend(chosen, draw)
    if kind.base == "tokenizers":
        chosen.rename(folder / "tokenizer.json")
    return kind, *((HUGE_SECONDS, HUGE_ROOM) if huge else (kind.seconds, ROOM))


def memory(field_name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field_name}:")[2].split()[0]) * 1024


def run_case(name: str, bases: Path, folder: Path) -> tuple[str, str, float, int]:
    """"loaded", "refused" or "failed"; a sentence; seconds; bytes."""
    kind, most_seconds, most_bytes = prepare(name, bases, folder)
    Path("/proc/self/clear_refs").write_text("5")       # the peak begins anew
    before, start = memory("VmRSS"), time.process_time()
    outcome, sentence = "loaded", ""
    try:
        first = kind.read(folder)
        seconds = time.process_time() - start
        if repr(first) != repr(kind.read(folder)):
            outcome, sentence = "failed", "read twice, it is not the same"
    except (ValueError, OSError) as error:
        seconds, sentence = time.process_time() - start, str(error).replace(str(folder), "")
        ours = type(error) is UserError or isinstance(error, OSError)      # a JSONDecodeError is a library's
        outcome = "refused" if ours and "\n" not in sentence and 0 < len(sentence) <= LONGEST else "failed"
        if outcome == "failed":
            sentence = f"{traceback.format_exc(-1)[-300:]!r} {type(error).__name__}, {len(sentence)} long: {sentence[:300]!r}"
    except BaseException as error:                      # a panic of a Rust library is no Exception
        seconds, outcome = time.process_time() - start, "failed"
        sentence = f"{type(error).__name__}: {str(error)[:200]!r} {traceback.format_exc(-2)[-400:]!r}"
    peak = max(0, memory("VmHWM") - before)
    if seconds > most_seconds or peak > most_bytes:
        outcome, sentence = "failed", f"{seconds:.1f} seconds, {peak >> 20} MB; {sentence}"
    return outcome, sentence, seconds, peak


def work(names: list[str], bases: Path, folder: Path, out: Connection) -> None:
    torch.set_num_threads(1)
    faulthandler.disable()                              # a crash is told by the parent
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + HUGE_ROOM + (1 << 30),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)        # what a Rust library says of its panic
    for name in names:
        out.send(run_case(name, bases, folder))


def run_cases(names: list[str]) -> Iterator[tuple[str, str, str, float, int]]:
    """(case, outcome, sentence, seconds, bytes) of each, from a child that is replaced when it dies or hangs."""
    context, left = multiprocessing.get_context("fork"), list(names)
    with tempfile.TemporaryDirectory() as root:
        write_bases(Path(root))
        while left:
            ours, theirs = context.Pipe(duplex=False)
            child = context.Process(target=work, args=(left, Path(root), Path(root) / "case", theirs))
            child.start()
            theirs.close()
            try:
                while left:
                    if not ours.poll(HANGS):
                        yield left.pop(0), "failed", f"still at it after {HANGS:.0f} seconds", HANGS, 0
                        break
                    found = ours.recv()
                    yield left.pop(0), *found
            except EOFError:
                child.join()
                yield left.pop(0), "failed", f"the process died: {child.exitcode}", 0.0, 0
            child.kill()
            child.join()


def names_of(cases: int, seed: int) -> list[str]:
    """Evenly of all kinds; those that are large by intent come once, where there are thousands of others."""
    each = -(-cases // len(KINDS))
    return [f"{kind}/{seed}/{i}" for kind in KINDS for i in range(each)] + [
        f"huge/0/{i}" for i in range(len(HUGE)) if cases >= 1000]


def fuzz(names: list[str]) -> dict[str, Result]:
    results: dict[str, Result] = {}
    for name, outcome, sentence, seconds, peak in run_cases(names):
        result = results.setdefault(name.partition("/")[0], Result())
        result.cases += 1
        result.loaded += outcome == "loaded"
        result.refused += outcome == "refused"
        result.slowest, result.peak = max(result.slowest, seconds), max(result.peak, peak)
        result.sentences[sentence] += 1
        if outcome == "failed":
            result.failures[name] = sentence
    return results


def table(results: dict[str, Result]) -> str:
    total = Result(*(sum(getattr(result, name) for result in results.values()) for name in ("cases", "loaded", "refused")),
                   max(result.slowest for result in results.values()), max(result.peak for result in results.values()),
                   {name: why for result in results.values() for name, why in result.failures.items()})
    rows = [(name, f"{of.cases:,}", f"{of.loaded:,}", f"{of.refused:,}", f"{len(of.failures):,}", f"{of.slowest:.2f}",
             f"{of.peak >> 20:,}") for name, of in {**results, "all": total}.items()]
    return "\n".join("| " + " | ".join(row) + " |" for row in [
        ("file", "cases", "loaded", "refused", "failed", "slowest, CPU s", "peak, MB"), ("---", *6 * ["---:"]), *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description="Read files that lie.")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", action="append", default=[], metavar="KIND/SEED/NUMBER", help="only this one")
    args = parser.parse_args()
    results = fuzz(args.case or names_of(args.cases, args.seed))
    failures = {name: why for result in results.values() for name, why in result.failures.items()}
    for name, result in results.items() if args.case else ():
        print(name, *result.sentences, sep="\n  ")
    print(*(f"{name}\n    {why}" for name, why in failures.items()), "", table(results), sep="\n")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
