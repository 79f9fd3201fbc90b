"""What the tests of attention analyses are run on. Imports stand inside: jaxtyping's hook is not in place before."""

import pytest
import torch


@pytest.fixture(scope="module")
def prompts():
    from probe_cases import LENGTH
    from tiny_models import D_VOCAB

    return torch.stack([torch.randperm(D_VOCAB, generator=torch.Generator().manual_seed(i))[:LENGTH] for i in range(4)])


@pytest.fixture(scope="module")
def planted():
    import interp
    from interp.zoo.planted import factory
    from interp.zoo.planted.mechanisms import DuplicateToken, FirstTokenSink, Induction

    made = factory.plant([Induction(), DuplicateToken(), FirstTokenSink()], seed=0)
    return made, interp.load(made.model, tokenizer=made.tokenizer)
