"""The model: token ids in, tensors out. Does not depend on any task."""
