"""The problem: questions, SQL, rows, rewards. Plain Python; no torch, and no idea that a model exists."""
