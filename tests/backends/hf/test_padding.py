"""Padded prompts are as alone, or refused with the side that works; rotary tables are those of the prompt."""

import copy

import pytest
import torch
import transformers
from torch.testing import assert_close

import interp
from interp.batch import Batch
from interp.errors import BackendError
from interp.measurement.checks.backend import random_module

SIZES = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}
ROWS = [list(range(5, 17)), list(range(20, 27))]


def llama(context=16, **rope):
    none = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    parameters = {"rope_type": "default", "rope_theta": 1e4, **rope}
    return random_module(
        transformers.LlamaConfig(**SIZES, **none, max_position_embeddings=context, rope_parameters=parameters),
        scale=4.0,
    )


def bart():
    options = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
    return random_module(transformers.BartConfig(vocab_size=64, max_position_embeddings=64, **options, is_decoder=True))


def roberta():
    return random_module(
        transformers.RobertaConfig(**SIZES, max_position_embeddings=64, pad_token_id=1, is_decoder=True)
    )


def as_alone(model, side):
    run = model.run(Batch.of(ROWS, side=side))
    for row, ids in enumerate(ROWS):
        real = run.logits[row][Batch.of(ROWS, side=side).mask[row]]
        assert_close(real, model.run([ids]).logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("make", [llama, roberta])
def test_prompts_are_as_alone(make, side):
    as_alone(interp.load(make()), side)


def test_positions_that_padding_shifts_are_refused_and_the_other_side_runs():
    source = bart()
    model = interp.load(source)
    as_alone(model, "right")
    for call in (model.run, lambda batch: model.generate(batch, max_new_tokens=2)):
        with pytest.raises(BackendError, match='padded on the left .* side="right"'):
            call(Batch.of(ROWS, side="left"))
    model.run([ROWS[0]])


def test_models_that_take_no_padding_at_all_are_refused():
    source = llama()
    forward = source.forward

    def deaf(input_ids, attention_mask=None, **options):
        return forward(input_ids, **options)

    source.forward = deaf
    model = interp.load(source)
    with pytest.raises(BackendError, match="one length at a time|pad on the"):
        model.run(Batch.of(ROWS, side="left"))


def test_dynamic_tables_are_those_of_the_prompt_whatever_was_run_before():
    source = llama(rope_type="dynamic", factor=2.0)
    model = interp.load(copy.deepcopy(source))
    assert model.info.context is None
    prompts = [torch.arange(n)[None] % 60 for n in (40, 24, 12, 16)]
    with torch.no_grad():
        alone = [copy.deepcopy(source)(ids).logits for ids in prompts]
        for ids, logits in zip(prompts, alone, strict=True):
            model.torch_module(prompts[0])  # a pass of the user's own, whose tables stay in the module
            assert_close(model.run(ids).logits, logits, atol=1e-5, rtol=1e-4)
        model.run(prompts[0])
        assert_close(model.torch_module(prompts[1]).logits, alone[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_batches_whose_longest_prompt_changes_the_others_are_refused(kind):
    more = {"factor": 2.0}
    if kind == "longrope":
        factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 16}
        more |= {**factors, "context": 32}
    model = interp.load(llama(rope_type=kind, **more))
    long, short = list(range(3, 27)), list(range(5, 14))
    with pytest.raises(BackendError, match="those of the batch's longest prompt"):
        model.run(Batch.of([long, short]))
    model.run(Batch.of([short, short[:4]]))
    model.run(Batch.of([long, long]))
