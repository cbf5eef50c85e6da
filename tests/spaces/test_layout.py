import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces import PruningSchedule, Stage, TokenLayout
from spaces.errors import ScheduleError

VIM = TokenLayout("vim", (224, 224), (Stage(24, 14, 14),), protected=1)
STAGED = TokenLayout("staged", (32, 32), (Stage(2, 8, 8), Stage(3, 4, 4)))


def test_tokens_after_each_block():
    tokens = VIM.tokens(PruningSchedule.parse("5:0.8,10:0.8,15:0.8"))
    assert tokens[3:6] == [196, 157, 157]
    assert (tokens[9], tokens[14], tokens[23]) == (126, 101, 101)
    assert VIM.tokens(PruningSchedule()) == [196] * 24


def test_dropped_tokens_return_at_the_next_stage():
    assert STAGED.tokens(PruningSchedule.parse("1:0.5,4:0.25")) == [32, 32, 16, 4, 4]


def test_a_block_that_does_not_exist():
    with pytest.raises(ScheduleError, match=r"block 6.*5 blocks"):
        STAGED.check(PruningSchedule.parse("6:0.5"))


def test_blocks_and_their_stages():
    assert STAGED.ends == (2, 5)
    assert STAGED.places == (1, 3, 4)
    assert [STAGED.stage_of(block) for block in range(1, 6)] == [0, 0, 1, 1, 1]
    assert STAGED.returning and not VIM.returning
    assert VIM.places == tuple(range(1, 24)) and all(VIM.prunes(block) for block in range(1, 25))


def test_a_step_at_the_end_of_a_stage_drops_nothing():
    assert STAGED.tokens(PruningSchedule.parse("1:0.5,2:0.25,5:0.5")) == [32, 32, 16, 16, 16]
    assert [STAGED.prunes(block) for block in range(1, 6)] == [True, False, True, True, False]


@given(st.dictionaries(st.integers(1, 5), st.floats(0.1, 1.0)))
def test_a_block_works_on_the_tokens_that_the_block_before_left_or_on_the_whole_grid(keeps):
    schedule = PruningSchedule.of(keeps.items())
    left = STAGED.tokens(schedule)
    assert STAGED.worked_on(schedule) == [64, left[0], 16, left[2], left[3]]
