"""Prompts → completions: beam search and sampling. Begin with ``beams`` (the rule), then ``search`` (the public functions)."""
