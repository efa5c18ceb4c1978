"""Whether torch.compile can work here."""

import shutil

import pytest

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler for the CPU")
