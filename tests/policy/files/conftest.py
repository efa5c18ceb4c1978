"""A new model's folder."""

import pytest

from tests.policy.helpers import new_folder


# -------------------------------------------------------------------------------------------------- a model of our own, new
@pytest.fixture(scope="module")
def new_model(tmp_path_factory):
    return new_folder(tmp_path_factory.mktemp("made") / "new")
