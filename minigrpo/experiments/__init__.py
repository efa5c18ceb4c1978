"""Runs that differ in a few keys, side by side."""
