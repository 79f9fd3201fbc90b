"""`interp sae load` and `interp sae features`: what a dictionary is and keeps, and what its features are active on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import options
from interp.cli.names import LARGEST_SEED, check_run
from interp.files import writable_file, writable_folder

if TYPE_CHECKING:
    import pandas as pd

    from interp.dictionaries.activity import Features
    from interp.dictionaries.dictionary import Dictionaries, Dictionary
    from interp.dictionaries.fit import Quality
    from interp.model import Model
    from interp.reports.features import FeatureView

DictionaryArgument = Annotated[
    str, typer.Argument(metavar="DICTIONARY", help="Folder, file or hub id, or zoo:MODEL/NAME.")
]
Format = Annotated[str, typer.Option(metavar="F", help="Layout of its files; auto: by the files that are there.")]
SiteIn = Annotated[str | None, typer.Option(metavar="SITE", help="Where it reads, for files that do not say.")]
SiteOut = Annotated[str | None, typer.Option(metavar="SITE", help="Where it writes, likewise; where it reads without.")]
PromptOption = Annotated[list[str] | None, typer.Option("--prompt", "-p", metavar="TEXT", help="Text; repeatable.")]
TextOption = Annotated[list[Path] | None, typer.Option(metavar="FILE", help="File with text; repeatable.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the hub.")]
OwnRevision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the dictionary on the hub.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")]


def load(
    dictionary: DictionaryArgument,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="What it is for; measured in it.")
    ] = None,
    format: Format = "auto",  # noqa: A002  (the field's word)
    subfolder: Annotated[str, typer.Option(metavar="DIR", help="Folder inside DICTIONARY.")] = "",
    site: SiteIn = None,
    site_out: SiteOut = None,
    scale: Annotated[float | None, typer.Option(help="Factor of the input, for files that do not hold it.")] = None,
    prompt: PromptOption = None,
    text: TextOption = None,
    loss: Annotated[bool, typer.Option("--loss", help="Measure the loss recovered as well.")] = False,
    save: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="FORMAT DIR", help="Write it to DIR as saelens or circuit_tracer."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")] = False,
    dictionary_revision: OwnRevision = None,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = None,
    force: options.Force = False,
) -> None:
    """What do a dictionary's files hold, and does it do in MODEL what they claim? A mismatch is refused, with numbers.

    Example: interp sae load zoo:default/resid2 --model zoo:default --save saelens sae
    """
    check_run(model, dtype=dtype, device=device)
    from interp.dictionaries import load as load_dictionary
    from interp.dictionaries.fit import check, quality
    from interp.dictionaries.training.files import LAYOUTS, write
    from interp.errors import nearest
    from interp.loading.load import load as load_model

    _check_names(format, site, site_out)
    if save is not None and save[0] not in LAYOUTS:
        raise typer.BadParameter(f"no dictionary is written as {save[0]!r}; {nearest(save[0], LAYOUTS)}")
    if save is not None:
        writable_folder(save[1], (), force=force)
    for name, wanted in (("--loss", loss), ("--prompt", prompt), ("--text", text)):
        if wanted and model is None:
            raise typer.BadParameter(f"{name} is for measuring, and there is no model to measure in; give --model")
    prompts = _prompts(prompt, text) or None
    places = {"site": site, "site_out": site_out, "scale": scale}
    d = load_dictionary(dictionary, format=format, subfolder=subfolder, revision=dictionary_revision, **places)
    found = None
    if model is not None:
        checkpoint = load_model(model, revision=revision, dtype=dtype, device=device)
        found = check(checkpoint, d, prompts)
        found = quality(checkpoint, d, prompts, loss=True) if loss else found
    if save is not None:
        write(d, save[1], save[0], force=force)
        sys.stderr.write(f"wrote {save[1]}\n")
    members, measured = _members(d), _measured(d, found)
    if as_json:
        document = {"dictionary": dictionary, "format": d.members[0].format, "model": model}
        document |= {"n_tokens": None if found is None else found.n_tokens}
        document |= {"members": members, "measured": measured}
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
        return
    sys.stdout.write(f"{dictionary}: {repr(d)[1:-1]}, layout {d.members[0].format}\n\n{_rows(members)}\n")
    if measured:
        sys.stdout.write(f"\n{_rows(measured)}\n")
    if found is None:
        sys.stdout.write("\nNothing was measured, and one of another model or site would look the same: give --model\n")
    else:
        sys.stdout.write(
            f"\nMeasured on {found.n_tokens} tokens of {'your' if prompts else 'Python sources as'} text\n"
        )


def features(
    dictionary: DictionaryArgument,
    model: Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help="Hub id, local folder, or zoo:NAME.")],
    prompt: PromptOption = None,
    text: TextOption = None,
    feature: Annotated[
        int | None, typer.Option("--feature", "-f", min=0, metavar="N", help="One feature, looked at over the text.")
    ] = None,
    member: Annotated[int, typer.Option(min=0, metavar="I", help="Of a set of dictionaries, by number.")] = 0,
    format: Format = "auto",  # noqa: A002  (the field's word)
    site: SiteIn = None,
    site_out: SiteOut = None,
    measure: Annotated[
        bool, typer.Option("--check/--no-check", help="Hold it against what its files claim, as load does.")
    ] = True,
    top: Annotated[int, typer.Option(min=1, metavar="K", help="Features, activations or examples shown.")] = 10,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write .csv, .json or .parquet; .html with --feature.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the random directions beside a feature's logits.")
    ] = 0,
    dictionary_revision: OwnRevision = None,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = None,
    force: options.Force = False,
    quote: options.Quote = False,
) -> None:
    """Which features are active on a prompt? With --feature: what is one active on, and which logits does it push?

    Example: interp sae features zoo:default/resid2 --model zoo:default --prompt "The code of goose is"
    """
    check_run(model, dtype=dtype, device=device)
    from interp.dictionaries import load as load_dictionary
    from interp.dictionaries.dictionary import member_of
    from interp.dictionaries.fit import check
    from interp.loading.load import load as load_model

    _check_names(format, site, site_out)
    prompts = _prompts(prompt, text)
    if not prompts and feature is None:
        raise typer.BadParameter("features of what? give --prompt or --text, or one feature with --feature")
    if out is not None:
        if feature is not None and out.suffix != ".html":
            raise typer.BadParameter(f"what is said of one feature is a page; end {str(out)!r} in .html")
        out = writable_file(out, force=force) if feature is not None else options.table_target(out, force=force)
    d = load_dictionary(dictionary, format=format, revision=dictionary_revision, site=site, site_out=site_out)
    with options.usage():
        n = member_of(d, member).n_features
    if feature is not None and feature >= n:
        raise typer.BadParameter(f"feature {feature} is out of range; the dictionary has {n}")
    checkpoint = load_model(model, revision=revision, dtype=dtype, device=device)
    check(checkpoint, d, measure=measure)
    if feature is not None:
        _one(checkpoint, d, feature, prompts, member=member, k=top, seed=seed, out=out, as_json=as_json, force=force)
    else:
        _all(checkpoint, d, prompts, top=top, out=out, as_json=as_json, force=force, quote=quote)


def _one(
    model: Model,
    d: Dictionary | Dictionaries,
    feature: int,
    prompts: list[str],
    *,
    member: int,
    k: int,
    seed: int,
    out: Path | None,
    as_json: bool,
    force: bool,
) -> None:
    from interp.reports.features import feature_view
    from interp.texts import sources

    if not prompts:
        prompts = list(sources("held-out").values())
        sys.stderr.write(f"no --prompt and no --text: looked at in {len(prompts)} Python sources of this machine\n")
    view: FeatureView = feature_view(model, d, feature, prompts, member=member, k=k, seed=seed)
    if out is not None:
        sys.stderr.write(f"wrote {view.save(out, force=force)}\n")
    sys.stdout.write((json.dumps(view.document(), indent=1) if as_json else view.summary()) + "\n")


def _all(
    model: Model,
    d: Dictionary | Dictionaries,
    prompts: list[str],
    *,
    top: int,
    out: Path | None,
    as_json: bool,
    force: bool,
    quote: bool,
) -> None:
    from interp.dictionaries.activity import features as active
    from interp.results.files import write_table

    found = active(model, d, prompts)
    table = _texts(found, model)
    if out is not None:
        sys.stderr.write(f"wrote {write_table(table, out, force=force, quote=quote)}\n")
    best = found.by_feature(len(table) if as_json else top)
    best["token"] = _tokens(best["token"].tolist(), model)
    if as_json:
        rows = {"features": best, "activations": table}
        text = {name: json.loads(rows_of.to_json(orient="records")) for name, rows_of in rows.items()}
        sys.stdout.write(json.dumps(text, indent=1) + "\n")
        return
    n_features = table[["site", "feature"]].drop_duplicates().shape[0]
    sys.stdout.write(f"{n_features} features active, {len(table)} times at {int(found.batch.mask.sum())} tokens\n")
    if len(table):
        largest = table.nlargest(top, "activation")
        sys.stdout.write(f"\nFeatures by their largest activation\n{_frame(best)}\n")
        sys.stdout.write(f"\nLargest activations\n{_frame(largest)}\n")


def _texts(found: Features, model: Model) -> pd.DataFrame:
    """The table with texts of tokens, in the order of the prompts."""
    table = found.table().rename(columns={"token": "id", "value": "activation"})
    table.insert(2, "token", _tokens(table["id"].tolist(), model))
    return table.sort_values(["prompt", "position", "activation"], ascending=[True, True, False], ignore_index=True)


def _tokens(ids: list[int], model: Model) -> list[str]:
    from interp.reports.tokens import visible
    from interp.tokens.texts import token_texts

    return [visible(word) for word in token_texts(ids, model.tokenizer)]


def _check_names(format: str, *sites: str | None) -> None:  # noqa: A002
    """Refuse an unknown layout or a place that is none as errors of usage."""
    from interp.dictionaries.formats.registry import FORMATS
    from interp.errors import nearest
    from interp.sites import Site

    if format not in ("auto", *FORMATS):
        raise typer.BadParameter(f"unknown format {format!r} of a dictionary; {nearest(format, ('auto', *FORMATS))}")
    with options.usage():
        for site in sites:
            if site is not None:
                Site.parse(site)


def _prompts(prompt: list[str] | None, text: list[Path] | None) -> list[str]:
    with options.usage():
        return [*(prompt or ()), *map(options.read_text, text or ())]


def _members(d: Dictionary | Dictionaries) -> list[dict[str, Any]]:
    """What each dictionary is, a row each."""
    return [
        {
            "reads": None if m.site_in is None else str(m.site_in),
            "writes": ", ".join(map(str, m.sites_out)) or None,
            "features": m.n_features,
            "d_in": m.d_in,
            "d_out": m.d_out,
            "activation": m.activation.name,
            "normalisation": m.normalisation.kind,
            "scale": m.normalisation.scale,
            "skip": m.skip is not None,
        }
        for m in d.members
    ]


def _measured(d: Dictionary | Dictionaries, found: Quality | None) -> list[dict[str, Any]]:
    """FVU, L0 and loss recovered as measured beside what the files claim; None for what is not known."""
    from interp.dictionaries.fit import claims_of

    claims = claims_of(d)
    unexplained = None if "fve" not in claims else 1 - claims["fve"]
    loss = None if found is None or not found.loss else found.loss_recovered
    if found is None:
        rows: list[tuple[str, str, float | None, float | None]] = [
            ("FVU", "", None, unexplained),
            ("L0", "", None, claims.get("l0")),
        ]
    else:
        rows = [("FVU", str(site), 1 - x, unexplained) for site, x in found.fve.items()]
        rows += [("L0", str(site), x, claims.get("l0")) for site, x in found.l0.items()]
    rows.append(("loss recovered", "", loss, claims.get("loss_recovered")))
    names = ("quantity", "site", "measured", "claimed")
    return [dict(zip(names, row, strict=True)) for row in rows if row[2] is not None or row[3] is not None]


def _rows(rows: list[dict[str, Any]]) -> str:
    import pandas as pd

    return _frame(pd.DataFrame(rows).astype(object).where(lambda x: x.notna(), "-"))


def _frame(table: pd.DataFrame) -> str:
    return table.to_string(index=False, float_format=lambda x: f"{x:.4g}")
