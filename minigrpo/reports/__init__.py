"""What a run wrote, read back and drawn. Loads no model."""
