"""Model folders and adapters, in and out, as safetensors."""
