"""How one GRPO step grows: seconds and memory as prompts, completions, K or the questions of a step are doubled; the questions
also where they share most of their prompts.

    python -m tests.benchmarks.growth [--device cpu|cuda]

A small Llama of random weights; nobody stops early. Each size runs in a process of its own, so that its memory is its own.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace

from tests.benchmarks import step as benchmark

MODEL = benchmark.LLAMA | {"vocab_size": 2048, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
                           "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
START = benchmark.Work(MODEL, questions=4, prompt=128, completions=2, tokens=32, micro_batch=8, budget=2048, repeats=3)
DOUBLED = [("prompt", 4, 0), ("tokens", 4, 0), ("completions", 3, 0), ("questions", 4, 0), ("questions", 4, 112)]  # what, how often, shared
SHOWN = ("prefill", "generate (beam)", "reference", "update")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how a GRPO step grows.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        return benchmark.measure_minigrpo(replace(START, **json.loads(args.only)), args.device, fused=False, checkpointing=False)
    print(f"{'':22} {'':>6}" + "".join(f"{phase:>24}" for phase in (*SHOWN, "step")))
    for axis, times, shared in DOUBLED:
        for doubled in range(times + 1):
            size = getattr(START, axis) * 2**doubled
            ended = subprocess.run([sys.executable, "-m", "tests.benchmarks.growth", "--device", args.device,
                                    "--only", json.dumps({axis: size, "shared": shared})],
                                   stdout=subprocess.PIPE, text=True, check=True)
            rows = {row["phase"]: row for row in map(json.loads, ended.stdout.splitlines())}
            cells = [f"{row['median_s'] * 1e3:9.0f} ms {row['peak_bytes'] / 1e9:7.2f} GB"
                     for row in (rows[phase] for phase in (*SHOWN, "step"))]
            print(f"{axis + (f', {shared} shared' if shared else ''):22} {size:6}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
