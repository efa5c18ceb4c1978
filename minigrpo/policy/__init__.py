"""The model: token ids and tensors. It has never heard of SQL."""
