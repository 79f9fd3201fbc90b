"""`EncoderStack` and `DecoderStack`: one stack of an encoder-decoder as a model of its own; `stack_of` makes them.

An encoder-decoder has three attentions: of the source among its own tokens, of what is written among its own, and of
what is written to the source. A `Model` has one; so each is a model of its own on the same weights. The encoder takes
token ids and gives no logits. The decoder takes the ids of what it has written; the source stands still, and is encoded
anew in every pass, so that it is never that of other weights.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin, PreTrainedModel
from transformers.utils.generic import ModelOutput

from interp.attention import Recorder, current_recorder, set_recorder
from interp.backends.hf.watch import PROBE
from interp.batch import Batch, Prompts
from interp.errors import BackendError, ModelLoadError, TaskError, UnknownModel, nearest
from interp.model import STACKS
from interp.numerics import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENCODER = "encoder"
_encoders: weakref.WeakValueDictionary[int, EncoderStack] = weakref.WeakValueDictionary()  # by the id of the whole


@dataclass
class StackOutput(ModelOutput):
    """What a stack gives: logits [batch pos d_vocab] and the cache; of an encoder its states, and all of its output."""

    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    past_key_values: Any = None
    encoded: Any = None


class Stack(PreTrainedModel, GenerationMixin):
    """A stack of `whole`, an encoder-decoder, whose parts it shares.

    Attributes:
        stack: which one, of `STACKS`. whole: the encoder-decoder. part: the stack in it.
        aside: attention modules of its layers that are not the ones it is looked at for; set once they are known.
    """

    _supports_sdpa = _supports_attention_backend = True

    def __init__(self, whole: PreTrainedModel, part: PreTrainedModel, stack: str) -> None:
        config = copy.deepcopy(part.config)
        config.is_encoder_decoder, config.is_decoder = False, stack != ENCODER
        super().__init__(config)
        config._attn_implementation_internal = part.config._attn_implementation_internal
        self.whole, self.stack = whole, stack
        self.__dict__["part"] = part  # a part of `whole`, which is where its parameters are named
        self.aside: frozenset[nn.Module] = frozenset()
        self.source: tuple[int, ...] | None = None
        self.training = whole.training

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """No attention of its own: that of the parts is set."""
        return False

    @property
    def lists(self) -> list[list[Any]]:
        """What a context of edits puts down, for `State`."""
        return []

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return device_of(self.get_input_embeddings())

    def get_input_embeddings(self) -> nn.Module:
        """W_E of the stack."""
        return self.__dict__["part"].get_input_embeddings()


class EncoderStack(Stack):
    """The encoder. Nothing reads tokens off it, so it has no unembedding."""

    def __init__(self, whole: PreTrainedModel) -> None:
        super().__init__(whole, parts(whole)[0], ENCODER)
        self.recorders: list[Recorder] = []  # of edits that stand, for passes of the decoder
        self.edited: list[DecoderStack] = []  # with edits that stand

    @property
    def lists(self) -> list[list[Any]]:
        """The recorders of standing edits."""
        return [self.recorders]

    def get_output_embeddings(self) -> None:
        """None."""

    @contextlib.contextmanager
    def recorded(self, recorder: Recorder) -> Iterator[None]:
        """Context in which passes of the decoder encode their source with edits inside attention as well."""
        self.recorders.append(recorder)
        try:
            yield
        finally:
            self.recorders[:] = [r for r in self.recorders if r is not recorder]

    def forward(
        self, input_ids: Int[Tensor, "batch pos"], attention_mask: Tensor | None = None, **_: Any
    ) -> StackOutput:
        """The last hidden state [batch pos d_model]."""
        output = self.__dict__["part"](input_ids=input_ids, attention_mask=attention_mask)
        return StackOutput(last_hidden_state=output[0], encoded=output)


class DecoderStack(Stack):
    """The decoder on one source text, the same for every prompt; `stack` says which of its attentions is meant."""

    def __init__(self, whole: PreTrainedModel, stack: str, source: Sequence[int]) -> None:
        super().__init__(whole, parts(whole)[1], stack)
        self.generation_config = copy.deepcopy(getattr(whole, "generation_config", self.generation_config))
        starts = [getattr(c, "decoder_start_token_id", None) for c in (self.generation_config, whole.config)]
        starts.append(getattr(whole.config, "bos_token_id", None))
        self.config.bos_token_id = next((s for s in starts if s is not None), None)
        self.source = tuple(source)
        self.encoder = encoder_of(whole)

    def get_output_embeddings(self) -> nn.Module | None:
        """W_U."""
        return self.whole.get_output_embeddings()

    @property
    def lists(self) -> list[list[Any]]:
        """The decoders with standing edits."""
        return [self.encoder.edited]

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Context in which edits of this decoder stand, and no other decoder of the same weights is run.

        Raises:
            BackendError: edits of another one stand, whose places this one does not come by.
        """
        self.check_alone()
        self.encoder.edited.append(self)
        try:
            yield
        finally:
            del self.encoder.edited[-1:]

    def check_alone(self) -> None:
        """Refuse a pass while edits of another decoder of the same weights stand.

        Raises:
            BackendError: says of which.
        """
        other = next((d for d in self.encoder.edited if d is not self), None)
        if other is not None:
            raise BackendError(
                f"edits of the same weights stand (stack={other.stack!r}, a source of {len(other.source or ())} tokens)"
                ", and this model would not come by them: run the model that is edited, or leave the context first"
            )

    def with_source(self, source: Sequence[int]) -> DecoderStack:
        """The same decoder on another source."""
        other = DecoderStack(self.whole, self.stack, source)
        other.aside = self.aside
        return other

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> StackOutput:
        """Logits [batch pos d_vocab] after each token of what is written."""
        cache = past_key_values
        if cache is not None and not isinstance(cache, EncoderDecoderCache):
            cache = EncoderDecoderCache(cache, DynamicCache())  # the source's keys are made anew
        output = self.whole(
            encoder_outputs=self._encoded(len(input_ids)),
            decoder_input_ids=input_ids,
            decoder_attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=bool(use_cache),
        )
        kept = getattr(output.past_key_values, "self_attention_cache", None)
        return StackOutput(logits=output.logits, past_key_values=kept)

    def generate(self, inputs: Tensor | None = None, *args: Any, **options: Any) -> Any:
        """transformers' own, with a cache of as many layers as the decoder has (configurations may count others)."""
        cached = options.get("use_cache", self.generation_config.use_cache) is not False
        if cached and options.get("past_key_values") is None and options.get("cache_implementation") is None:
            options["past_key_values"] = DynamicCache()
        base: Any = super()
        return base.generate(inputs, *args, **options)

    def _encoded(self, rows: int) -> Any:
        """The encoded source, once per prompt: a constant of the pass, under the encoder's own edits if any stand."""
        ids = torch.tensor([self.source], device=self.encoder.device)
        before = current_recorder()
        try:
            set_recorder(self.encoder.recorders[-1] if self.encoder.recorders else None)
            with torch.no_grad():
                output = copy.copy(self.encoder(ids).encoded)
        finally:
            set_recorder(before)
        output["last_hidden_state"] = output[0].to(self.device).expand(rows, -1, -1)
        return output


def parts(whole: PreTrainedModel) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Encoder and decoder.

    Raises:
        ModelLoadError: they are no models of transformers by themselves, or the source is no text (audio, images).
    """
    family, both = type(whole).__name__, (whole.get_encoder(), whole.get_decoder())
    for part in both:
        if not isinstance(part, PreTrainedModel) or part is whole:
            raise ModelLoadError(
                f"{family} is an encoder-decoder whose stacks cannot be told apart: {type(part).__name__}"
            )
        if part.main_input_name != "input_ids":
            raise ModelLoadError(
                f"{family} reads {part.main_input_name!r} and no token ids, which cannot be given here: only "
                "encoder-decoders from text to text can be loaded"
            )
    return both


def encoder_of(whole: PreTrainedModel) -> EncoderStack:
    """The encoder of an encoder-decoder: one object, so that edits of it hold wherever it is run."""
    encoder = _encoders.get(id(whole)) or EncoderStack(whole)
    _encoders[id(whole)] = encoder
    return encoder


def source_ids(source: Prompts, tokenizer: PreTrainedTokenizerBase | None, whole: PreTrainedModel) -> tuple[int, ...]:
    """Ids of a source text, with all that the tokenizer adds to one.

    Raises:
        TaskError: several texts, one that is too long, or ids outside of the encoder's vocabulary.
    """
    batch = Batch.of(source, tokenizer, keep_end=True)
    if len(batch.ids) != 1:
        raise TaskError(f"a decoder reads one source text; got {len(batch.ids)}: take with_source(text) for each")
    ids = tuple(batch.ids[0][batch.mask[0]].tolist())
    encoder = parts(whole)[0]
    size = len(next(encoder.get_input_embeddings().parameters()))
    context = getattr(encoder.config, "max_position_embeddings", None)
    if min(ids) < 0 or max(ids) >= size:
        raise TaskError(f"token id {min(ids) if min(ids) < 0 else max(ids)} is outside the vocabulary 0..{size - 1}")
    if context is not None and len(ids) > context:
        raise TaskError(f"source text of {len(ids)} tokens is longer than the encoder's context of {context}")
    return ids


def stack_of(whole: PreTrainedModel, stack: str, source: Sequence[int] | None) -> Stack:
    """One stack of an encoder-decoder.

    Raises:
        ModelLoadError: no such stack, a decoder without a source or an encoder with one, or a source that is no text.
    """
    if stack not in STACKS:
        raise UnknownModel(f"unknown stack {stack!r}; {nearest(str(stack), STACKS)}")
    if stack == ENCODER:
        if source is not None:
            raise ModelLoadError(
                'an encoder takes its source as the prompt of a run; leave source_text= out, or say stack="decoder"'
            )
        return encoder_of(whole)
    if source is None:
        name = type(whole).__name__
        raise ModelLoadError(
            f'the decoder of {name} reads a source: interp.load(..., stack={stack!r}, source_text="...")'
        )
    return DecoderStack(whole, stack, source)


def probing(model: Any) -> Any:
    """The model as its parts are found: a decoder on a source longer than that prompt, so that keys tell them apart."""
    return model.with_source((0,) * (PROBE + 1)) if isinstance(model, DecoderStack) else model
