"""Run folders written by hand, as run.py leaves them: small, and with exactly the figures that a test is about."""

import json
from collections.abc import Sequence
from pathlib import Path

STATUSES = ("no_sql", "refused", "syntax", "unknown_column", "unknown_table", "other", "timeout", "too_large")


def step(number: int, **changed: object) -> dict:
    """A step's record: half of the candidates are right, a quarter fails, three seconds."""
    return {"kind": "step", "step": number, "reward": 500.0, "reward_std": 400.0, "frac_reward_zero_std": 0.25, "strict": 0.5, "ems": 0.5,
            "rems": 0.625, "error_rate": 0.25, "status/ok": 0.75, **{f"status/{name}": 0.0 for name in STATUSES},
            "status/syntax": 0.25, "completions/mean_length": 40.0, "completions/max_length": 60,
            "completions/clipped_ratio": 0.0, "kl": 0.01, "grad_norm": 0.5, "skipped": 0.0, "seconds/generate": 2.0,
            "seconds/update": 1.0, **changed}


def evaluation(number: int, strict: float, split: str = "dev") -> dict:
    return {"kind": "evaluation", "split": split, "step": number, f"{split}/n": 10, f"{split}/of": 10, f"{split}/strict": strict, f"{split}/ems": strict,
            f"{split}/rems": strict, f"{split}/error_rate": 0.0}


def older(record: dict) -> dict:
    """The same record as a run wrote it when records did not say what they are."""
    return {name: value for name, value in record.items() if name not in ("kind", "split")}


def line(strict: float, **more: object) -> dict:
    """What a summary says of a split."""
    return {"n": 10, "of": 10, "strict": strict, "ems": strict, "rems": strict, "error_rate": 20.0, "status": {"ok": 80.0},
            "kinds": {}, **more}


def rollout(total: float, sql: str | None, advantage: float | None = None, **execution: object) -> dict:
    """Without an ``advantage`` as older runs wrote it."""
    recorded = {} if advantage is None else {"advantage": advantage}
    return {"completion": {"ids": [1], "logprobs": [-0.5], "stopped": True}, "text": f"said {sql}", "sql": sql,
            "execution": {"status": "ok", "rows": [[7, "x"]], "columns": ["n", "name"], "code": None, "error": "",
                          "seconds": 0.1, **execution},
            "reward": {"total": total, "terms": {"runs": 1.0, "strict": float(total > 1)}}, **recorded}


def sample(number: int, *rollouts: dict, text: str = "How many?", answer: str = "7", id: str = "train/3") -> dict:
    return {"step": number, "question": {"id": id, "split": "train", "index": 3, "text": text, "answer": answer,
                                         "database": "original", "kind": "1", "gold_sql": None}, "rollouts": list(rollouts)}


def write_run(folder: Path, *, config: str = "", warmup: Sequence[dict] = (), metrics: Sequence[dict] = (),
              samples: Sequence[dict] = (), summary: dict | None = None, evaluated: dict | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(config, encoding="utf-8")
    for name, records in (("warmup", warmup), ("metrics", metrics), ("samples", samples)):
        if records:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    for name, content in (("summary.json", summary), ("eval/summary.json", evaluated)):
        if content is not None:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder
