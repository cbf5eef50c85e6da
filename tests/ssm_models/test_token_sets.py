"""The index sets of the diagram, and what is left of them after a step."""

import pytest
import torch

from ssm_models.token_sets import SETS_LEFT, TokenSets

# The diagram of the module: of ten tokens 1 and 5 are dropped, 0 and 7 convolved, 3, 6 and 9 frozen.
DIAGRAM = TokenSets(
    10,
    travelling_idx=torch.tensor([[0, 2, 3, 4, 6, 7, 8, 9]]),
    scanned_idx=torch.tensor([[1, 2, 3, 4, 6, 7]]),
    kept_idx=torch.tensor([[0, 2, 4]]),
)


def test_the_diagram() -> None:
    assert DIAGRAM.scanned_positions is not None and DIAGRAM.scanned_positions.tolist() == [[2, 3, 4, 6, 8, 9]]
    assert DIAGRAM.kept_positions is not None and DIAGRAM.kept_positions.tolist() == [[2, 4, 8]]
    assert DIAGRAM.kept_in_travelling is not None and DIAGRAM.kept_in_travelling.tolist() == [[1, 3, 6]]
    assert (DIAGRAM.travelling_count, DIAGRAM.scanned_count) == (8, 6)


@pytest.mark.parametrize(
    ("context", "travelling", "scanned"),
    [
        ("freeze", [0, 2, 3, 4, 6, 7, 8, 9], [2, 3, 4, 6, 8, 9]),
        ("conv", [0, 2, 3, 4, 6, 7, 8, 9], [2, 3, 6, 8, 9]),
        ("drop", [0, 2, 3, 6, 7, 8, 9], [2, 3, 6, 8, 9]),
    ],
)
def test_a_token_leaves_the_sets_of_its_context(context: str, travelling: list[int], scanned: list[int]) -> None:
    """Of the kept tokens 2, 4 and 8 the token 4 is pruned."""
    before = DIAGRAM
    after, still_scanned, still_travelling = before.without(
        torch.tensor([[0, 2]]), torch.tensor([[1]]), SETS_LEFT[context]
    )
    assert after.travelling_idx is not None and after.travelling_idx.tolist() == [travelling]
    assert after.scanned_positions is not None and after.scanned_positions.tolist() == [scanned]
    assert after.kept_positions is not None and after.kept_positions.tolist() == [[2, 8]]
    if context == "freeze":
        assert still_scanned is None
    else:
        assert before.scanned_positions is not None and still_scanned is not None
        assert before.scanned_positions.gather(1, still_scanned).tolist() == [scanned]
    if context == "drop":
        assert before.travelling_idx is not None and still_travelling is not None
        assert before.travelling_idx.gather(1, still_travelling).tolist() == [travelling]
    else:
        assert still_travelling is None


def test_all_tokens_need_no_index() -> None:
    sets = TokenSets(4)
    assert sets.kept_positions is sets.scanned_positions is sets.kept_in_travelling is None
    assert sets.tensors == () and sets.scanned_count == sets.travelling_count == 4
