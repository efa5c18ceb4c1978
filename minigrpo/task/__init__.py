"""What the model is asked and how its text is judged. Does not depend on torch or on any model."""
