"""Laws of a run: it is the module's own pass, edits do what they say and nothing else, and nothing is left behind."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from interp.batch import Batch
from interp.edits import Ablate, Add, Edit, KnockOut, Noise, Replace, Scale, Uniform
from interp.errors import InterpError, SiteError, TaskError
from interp.measurement.checks.laws.subject import EXACT, Subject, apart, close, noise, require, run_logits
from interp.sites import DIVISORS, SQUARE, UNLAYERED, Site

LOOSE = 2e-5
"""Share for what goes through changed activations or another grouping of the batch."""


def logits_are_the_modules_own(subject: Subject) -> None:
    """Without captures and edits the logits are those of the transformers module."""
    batch = subject.batch
    inputs: dict[str, Any] = {"attention_mask": batch.mask.long()} if batch.padded else {}
    if batch.padded and "position_ids" in inspect.signature(subject.module.forward).parameters:
        inputs["position_ids"] = batch.positions
    with torch.no_grad():
        own = subject.module(batch.ids, **inputs).logits
    close(subject.logits(), own.cpu()[subject.real], "logits, against the module's own forward pass")


def padding_and_batching_change_nothing(subject: Subject) -> None:
    """Every site of a prompt is the same alone, among others, and padded on either side."""
    model, kinds = subject.model, subject.kinds()
    lengths = [max(2, len(subject.batch.ids[0]) - 3 * row) for row in range(len(subject.batch.ids))]
    rows = [ids[0, :length].tolist() for ids, length in zip(subject.prompts(), lengths, strict=True)]
    for side in ("left", "right"):
        batch = Batch.of(rows, side=side)
        together = model.run(batch, capture=kinds)
        for row, ids in enumerate(rows):
            real = batch.mask[row]
            for site, alone in model.run(torch.tensor([ids]), capture=kinds).acts.items():
                x = together.acts[site][row : row + 1].detach().cpu()
                x = x[..., real, :][..., real] if site.kind in SQUARE else x[:, real]
                y = alone.detach().cpu()
                if site.kind == "scores":  # those of a row count but for a constant
                    x, y = (s - s.amax(-1, keepdim=True) for s in (x, y))
                close(x, y, f"{site} of a prompt padded on the {side} among {len(rows)}", share=LOOSE)


def what_is_replaced_by_itself_changes_nothing(subject: Subject) -> None:
    """Clean patched into clean is clean, at every site; so are a factor of one and a sum with zero."""
    plain = subject.model.run(subject.batch, capture=subject.editable())
    logits = subject.logits()
    for site, value in plain.acts.items():
        same = subject.logits(edits=[Replace(site, value)])
        close(same, logits, f"logits with {site} replaced by itself", share=LOOSE)
    nothing = [edit for site in plain.acts for edit in (Scale(site, 1.0), Add(site, torch.zeros(())))]
    close(subject.logits(edits=nothing), logits, "logits with every site times one plus zero", share=LOOSE)


def an_edit_is_seen_and_moves_the_logits(subject: Subject) -> None:
    """A capture shows what the edit left, and what is changed at any site reaches the logits."""
    plain = subject.model.run(subject.batch, capture=subject.editable())
    logits = subject.logits()
    for site, x in plain.acts.items():
        if site.kind not in UNLAYERED and site.first != subject.last:
            continue
        shift = noise(x)  # a constant one is invisible to a LayerNorm, one that is the same for all keys to a softmax
        run = subject.model.run(subject.batch, capture=[site], edits=[Add(site, shift)])
        apart(run_logits(run).cpu()[subject.real], logits, f"logits with noise added at {site}")
        close(run.acts[site], x + shift, f"{site} after noise was added", share=LOOSE)


def the_stream_of_another_prompt_is_that_prompt(subject: Subject) -> None:
    """Everything patched in reproduces the prompt it came from: resid_post replaced gives the other prompt's logits."""
    model = subject.model
    source, corrupt = next(subject.prompts()), next(subject.prompts()).flip(1)
    clean = model.run(source, capture=["resid_post"])
    for site, stream in clean.acts.items():
        edited = subject.logits_of(corrupt, edits=[Replace(site, stream)])
        close(edited, run_logits(clean), f"logits with {site} of another prompt")


def a_run_from_a_layer_on_is_the_whole_run(subject: Subject) -> None:
    """`start=` at a residual gives the logits of its prompt, whatever the tokens; `stop=` gives activations alone."""
    model, batch, last = subject.model, subject.batch, subject.last
    whole, logits = model.run(batch, capture=["resid_pre", "resid_post", "z"]), subject.logits()
    others = Batch(batch.ids.flip(1).where(batch.mask, batch.ids), batch.mask)
    for layer in subject.layers:
        part = model.run(others, start=(layer, whole[Site("resid_pre", layer)]), capture=[Site("z", last)])
        close(run_logits(part).cpu()[subject.real], logits, f"logits of a run that starts at layer {layer}")
        mine, full = (run[Site("z", last)].cpu()[subject.real] for run in (part, whole))
        close(mine, full, f"L{last}.z of a run that starts at layer {layer}")
        short = model.run(batch, stop=layer, capture=[Site("resid_post", layer)])
        require(short.logits is None, f"a run that stops at layer {layer} gives logits")
        end = Site("resid_post", layer)
        close(short[end], whole[end], f"{end} of a run that stops there", share=EXACT)


MAKERS: tuple[Callable[[int | None], Edit], ...] = (
    lambda row: Ablate("L0H1.z", rows=row),
    lambda row: Scale("L0.mlp_out", 0.3, rows=row),
    lambda row: Noise("L0.attn_out", 0.5, seed=4, rows=row),
    lambda row: Noise("L0.resid_post", 0.5, seed=5, rows=row, positions=[0, -1]),
    lambda row: Scale("L0.resid_post@2", -1.0, rows=row),
    lambda row: Scale("L0H1.q", 3.0, rows=row),
    lambda row: KnockOut("L0.pattern", keys=0, rows=row),
    lambda row: KnockOut("L0H1.pattern", pairs=[(3, 2), (-1, 0)], rows=row, renormalise=False),
    lambda row: Uniform("L0.pattern", rows=row),
    lambda row: Ablate("L0H0.head_out", rows=row),
)


def edits_of_rows_are_runs_of_their_own(subject: Subject) -> None:
    """A batch whose rows carry different edits (`rows=`) is as many runs, one with each edit."""
    prompt = next(subject.prompts())
    plain = subject.logits_of(prompt)
    makers = [make for make in MAKERS if _allowed(subject, prompt, make(0))]
    require(len(makers) >= 4, "fewer than four of the edits tried are taken")
    edits = [make(row) for row, make in enumerate(makers)]
    together = subject.logits_of(prompt.expand(len(edits), -1), edits=edits)
    for row, make in enumerate(makers):
        edit = make(None)
        alone = subject.logits_of(prompt, edits=[edit])
        what = f"{type(edit).__name__} at {edit.site}"
        apart(alone, plain, f"logits under {what}")
        close(together[row], alone[0], f"logits under {what} in row {row} of a batch", share=LOOSE)


def _allowed(subject: Subject, prompt: Tensor, edit: Edit) -> bool:
    try:
        subject.model.run(prompt, edits=[edit])
    except InterpError:
        return False
    return True


def positions_count_the_real_tokens(subject: Subject) -> None:
    """`positions=` of an edit means the same token of a prompt alone and padded on the left."""
    rows = [ids[0, : ids.shape[1] - 2 * row].tolist() for row, ids in enumerate(subject.prompts())]
    batch = Batch.of(rows, side="left")
    for positions in (1, -2, [0, -1]):
        edits = [Scale("L0.resid_post", -1.0, positions=positions)]
        together = subject.logits_of(batch, edits=edits)
        for row, ids in enumerate(rows):
            alone = subject.logits_of([ids], edits=edits)
            mine = together[row, batch.mask[row]]
            close(mine, alone[0], f"logits with positions={positions} edited, padded", share=LOOSE)


class ReducerError(Exception):
    """What a reducer of ours raises."""


def nothing_is_left_behind(subject: Subject) -> None:
    """After any run, and after one that an exception ends, the model is as it was."""
    model, batch = subject.model, subject.batch
    before, mark = subject.logits(), model.fingerprint()

    def fail(x: Tensor) -> Tensor:
        raise ReducerError

    def interrupted(**options: Any) -> None:
        try:
            model.run(batch, edits=[Scale(f"L{subject.last}.resid_post", 0.5)], **options)
        except (ReducerError, InterpError):
            return
        raise AssertionError(f"an exception raised by a reducer is lost: {options}")

    for kind in (k for k in subject.kinds() if k not in ("logits", *DIVISORS)):
        interrupted(capture={kind: fail})
    interrupted(capture={f"L{subject.last}.resid_post": fail}, start=(0, model.run(batch, capture=["embed"])["embed"]))
    try:
        with model.editing([Scale("L0.resid_post", 0.5)]):
            raise ReducerError
    except ReducerError:
        pass
    close(subject.logits(), before, "logits after runs that were interrupted", share=EXACT)
    require(model.fingerprint() == mark, "the fingerprint is another after runs that changed no parameter")


def contexts_of_edits_nest(subject: Subject) -> None:
    """Inside `editing(a)` a run is one under a; inside `editing(b)` in it, one under a and then b; outside, neither."""
    model, outer, inner = subject.model, [Ablate("L0H1.z")], [Scale(f"L{subject.last}.mlp_out", 0.5)]
    plain, one = subject.logits(), subject.logits(edits=outer)
    both = subject.logits(edits=[*outer, *inner])
    apart(one, plain, "logits under an edit")
    with model.editing(outer):
        close(subject.logits(), one, "logits inside a context of edits")
        with model.editing(inner):
            close(subject.logits(), both, "logits inside a context within another")
        close(subject.logits(edits=inner), both, "logits of a run with edits inside a context")
        close(subject.logits(), one, "logits behind a context within another")
    close(subject.logits(), plain, "logits behind a context of edits", share=EXACT)


def generation_is_greedy_decoding(subject: Subject) -> None:
    """`generate` under edits gives the tokens that runs under the same edits would choose one by one."""
    model, ids = subject.model, next(subject.prompts())
    for edits in ([], [Ablate("L0H1.z"), Scale(f"L{subject.last}.mlp_out", 0.5)], [KnockOut("L0.pattern", keys=0)]):
        output = model.generate(ids, edits=edits, max_new_tokens=4)
        greedy_ids = ids
        for _ in range(4):
            logits = subject.logits_of(greedy_ids, edits=edits)
            greedy_ids = torch.cat([greedy_ids, logits[:, -1:].argmax(-1).to(greedy_ids)], 1)
        require(torch.equal(output.cpu(), greedy_ids.cpu()), f"generated {output.tolist()}, not {greedy_ids.tolist()}")


def what_is_not_there_is_refused(subject: Subject) -> None:
    """A site, layer or prompt that cannot be is an InterpError of its kind, never a number."""
    model, batch, n = subject.model, subject.batch, subject.model.info.n_layers
    cases: tuple[tuple[type[InterpError], str, Callable[[], object]], ...] = (
        (SiteError, "a layer that is not there", lambda: model.run(batch, capture=[f"L{n}.resid_post"])),
        (SiteError, "an unknown kind", lambda: model.run(batch, capture=["resid_pots"])),
        (SiteError, "a head that is not there", lambda: model.run(batch, edits=[Ablate(f"L0H{10**6}.z")])),
        (SiteError, "a site behind the stop", lambda: model.run(batch, capture=[f"L{n - 1}.resid_post"], stop=0)),
        (SiteError, "a value that does not fit", lambda: model.run(batch, edits=[Replace("L0.resid_post", WRONG)])),
        (TaskError, "an id outside the vocabulary", lambda: model.run([[model.info.d_vocab]])),
    )
    for error, what, call in cases:
        try:
            call()
        except error as refusal:
            require(bool(str(refusal).strip()), f"{what} is refused without a reason")
            continue
        raise AssertionError(f"{what} is taken; expected {error.__name__}")


WRONG = torch.zeros(7, 5, 3)

LAWS = (
    logits_are_the_modules_own,
    padding_and_batching_change_nothing,
    what_is_replaced_by_itself_changes_nothing,
    an_edit_is_seen_and_moves_the_logits,
    the_stream_of_another_prompt_is_that_prompt,
    a_run_from_a_layer_on_is_the_whole_run,
    edits_of_rows_are_runs_of_their_own,
    positions_count_the_real_tokens,
    nothing_is_left_behind,
    contexts_of_edits_nest,
    generation_is_greedy_decoding,
    what_is_not_there_is_refused,
)
