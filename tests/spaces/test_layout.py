import pytest

from spaces import PruningSchedule, Stage, TokenLayout
from spaces.errors import ScheduleError

VIM = TokenLayout("vim", (224, 224), (Stage(24, 14, 14),), protected=1)
STAGED = TokenLayout("staged", (32, 32), (Stage(2, 8, 8), Stage(3, 4, 4)))


def test_tokens_after_each_block():
    tokens = VIM.tokens(PruningSchedule.parse("5:0.8,10:0.8,15:0.8"))
    assert tokens[3:6] == [196, 157, 157]
    assert (tokens[9], tokens[14], tokens[23]) == (126, 101, 101)
    assert VIM.tokens(PruningSchedule()) == [196] * 24


def test_tokens_come_back_at_the_next_stage():
    assert STAGED.tokens(PruningSchedule.parse("1:0.5,4:0.25")) == [32, 32, 16, 4, 4]


def test_a_block_that_does_not_exist():
    with pytest.raises(ScheduleError, match=r"block 6.*5 blocks"):
        STAGED.check(PruningSchedule.parse("6:0.5"))
