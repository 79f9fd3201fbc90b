"""Loading from the hub, and heads of GPT-2 small that others have published. Run with HF_HUB_OFFLINE=0 -m network.

Sources: previous-token head L4H11 (TransformerLens, head-detector demo); induction heads L5H1, L5H5, L6H9, L7H2, L7H10
(prefix-matching scores shipped in the repository corxyz/icl-cmr). Scores differ with the prompts; the heads should not.
"""

import pytest

import interp

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def gpt2():
    return interp.load("openai-community/gpt2")


def test_the_commit_is_kept(gpt2):
    assert gpt2.info.commit is not None
    assert len(gpt2.info.commit) == 40


def test_previous_token_head_of_gpt2_small(gpt2):
    assert interp.analyze(gpt2, "previous_token").top(k=1)["component"].iloc[0] == "L4H11"


def test_induction_heads_of_gpt2_small(gpt2):
    found = interp.analyze(gpt2, "induction", causal=False).top("induction", k=8)
    assert {"L5H1", "L5H5", "L6H9", "L7H2", "L7H10"} <= set(found["component"])
