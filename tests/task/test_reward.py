"""The door through which a reward of one's own imports what it needs."""

from minigrpo.task import reward
from minigrpo.task.sql import reward as home


def test_it_gives_the_parts_themselves_and_all_that_it_names():
    assert reward.Reward is home.Reward and reward.PRESETS is home.PRESETS and reward.weigh is home.weigh
    assert all(hasattr(reward, name) for name in reward.__all__)
