"""Pages opened in a real browser, each with all that it said, asked for and ran."""

import shutil
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import interp
from circuits import circuit
from circuits.graph.graph import Graph
from circuits.graph.layout import Layout
from interp.components import is_head
from interp.reports import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --disable-extensions"
)
EVIL = "<script>alert(1)</script><img/src=x/onerror=alert(2)>"
HOSTILE = [EVIL, "&amp;&", "👩\u200d💻", "שלום", "\n", "\u202e", "{{7*7}}", "</script>"]
LOOKS = [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")]
PATIENCE = 10_000  # ms until a page that does not do what it should is given up


def pytest_collection_modifyitems(items):
    if CHROMIUM is None:
        for item in items:
            if "tests/browser" in item.nodeid:
                item.add_marker(
                    pytest.mark.skip(reason="no Chromium on PATH (chromium, chromium-browser, google-chrome)")
                )


@dataclass
class Opened:
    """A page, and what happened in it since it was opened."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def quiet(self):
        """Nothing on the console, no request but the file itself, no dialog."""
        assert self.said == []
        assert self.asked == [self.page.url]
        assert self.dialogs == []

    def barriers(self):
        """What axe finds that keeps somebody out, one line each."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{v['id']} ({v['impact']}): {v['nodes'][0]['html'][:120]}; {v['nodes'][0]['failureSummary'][:200]}"
            for v in found
            if v["impact"] in {"serious", "critical"}
        ]

    def overflow(self):
        """Pixels by which the page is wider than the window."""
        return self.page.evaluate("document.scrollingElement.scrollWidth - innerWidth")


@pytest.fixture(params=LOOKS, ids=lambda look: f"{look[0]} {look[1]}")
def look(request):
    """Width and colour scheme, as options of `show`."""
    width, scheme = request.param
    return {"width": width, "scheme": scheme}


@pytest.fixture(scope="session")
def hostile():
    """What the pages must show for the hostile words: themselves, or the sign for what cannot be seen."""
    return [{"\n": "↵", "\u202e": "\\u{202e}"}.get(word, word) for word in HOSTILE]


@pytest.fixture(scope="session")
def evil():
    return EVIL


@pytest.fixture(scope="module")
def browser():
    """Not for the session: while Playwright runs, an event loop does, and tests elsewhere could start none."""
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield made
        made.close()


@pytest.fixture
def show(browser):
    """Open a file: `show(path, width=..., scheme=..., scripts=...)`."""
    contexts = []

    def show(path, *, width=1280, scheme="light", scripts=True):
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            java_script_enabled=scripts,
            reduced_motion="reduce",
        )
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        opened = Opened(context.new_page())
        opened.page.on("console", lambda message: opened.said.append(f"{message.type}: {message.text}"))
        opened.page.on("pageerror", lambda error: opened.said.append(f"error: {error}"))
        opened.page.on("request", lambda request: _note(opened.asked, request.url))
        opened.page.on("dialog", lambda dialog: (opened.dialogs.append(dialog.message), dialog.dismiss()))
        opened.page.goto(path.as_uri())
        return opened

    yield show
    for context in contexts:
        context.close()


def _note(urls, url):
    if not url.startswith(("data:", "blob:")):
        urls.append(url)


def spoken(words):
    """A tokenizer of whole words, so that each hostile word is one token."""
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[-1]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token=words[-1])


@pytest.fixture(scope="session")
def default():
    """zoo:default under a hostile name, with a vocabulary that begins with hostile words."""
    given = interp.load("zoo:default")
    words = ["<bos>", *HOSTILE, *(f"w{i}" for i in range(given.info.d_vocab - 1 - len(HOSTILE)))]
    made = interp.load(given.torch_module, tokenizer=spoken(words))
    made.info = replace(made.info, name=EVIL)
    return made


@pytest.fixture(scope="session")
def found():
    """A small circuit."""
    return circuit(interp.load("zoo:default"), "ioi", edges=20, n_prompts=8, n_random=2)


@pytest.fixture(scope="session")
def report_file(default, found, tmp_path_factory):
    """A report on zoo:default with one hostile prompt and a circuit, from few prompts per analysis."""
    options = {"induction": {"n_random": 2}, "previous_token": {}}
    results = [interp.analyze(default, name, n_prompts=8, **own) for name, own in options.items()]
    path = tmp_path_factory.mktemp("report") / "report.html"
    ids = [0, *range(1, 1 + len(HOSTILE)), *range(300, 310), *range(1, 1 + len(HOSTILE))]
    return report(
        default,
        results=interp.Result.concat(results),
        tasks=[found],
        prompts=[(ids, 300, 301)],
        path=path,
        command=f"interp report {EVIL}",
    )


@pytest.fixture(scope="session")
def circuit_file(found, tmp_path_factory):
    """Its page, as `interp circuit --out --roles` writes it."""
    roles = {"L0H4": "previous token", "L0H3": "previous token", "L3H6": "name mover"}
    return found.save(tmp_path_factory.mktemp("circuit"), roles=roles)["circuit.html"]


@pytest.fixture(scope="session")
def large_circuit_file(tmp_path_factory):
    """A circuit of some 700 edges in a model of 32 layers of 32 heads, of which a few have roles."""
    layout, generator = Layout(32, 32, 8), np.random.default_rng(0)
    writes, reads = (np.exp(generator.normal(0, 1.5, size)) for size in layout.exists.shape)
    writes[0], reads[-1] = 1000, 1000
    scores = generator.normal(size=layout.exists.shape) * np.outer(writes, reads)
    graph = Graph.full(layout, scores).greedy(1200)
    heads = [name for name in graph.nodes if is_head(name)]
    roles = {name: ["induction", "previous token", "duplicate token"][i % 3] for i, name in enumerate(heads[::3])}
    return graph.page(roles=roles).save(tmp_path_factory.mktemp("large") / "circuit.html")


@pytest.fixture(scope="session")
def view_file(default, tmp_path_factory):
    """The viewer on a hostile prompt of 30 tokens: every position has its row."""
    ids = [0, *range(1, 1 + len(HOSTILE)), *range(300, 312), *range(1, 1 + len(HOSTILE)), 300]
    view = interp.attention_view(default, ids, heads=["L3H6", "L2H1", "L0H0"])
    return view.save(tmp_path_factory.mktemp("view") / "view.html")


@pytest.fixture(scope="session")
def notebook_file(default, tmp_path_factory):
    """What a notebook makes of a view: its HTML within a page that does not know it."""
    path = tmp_path_factory.mktemp("notebook") / "notebook.html"
    shown = interp.attention_view(default, [0, 1, 300, 301, 300], heads="L3H6")._repr_html_()
    path.write_text(f"<!doctype html><title>notebook</title><p>{shown}</p>", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def long_view_file(tmp_path_factory):
    """The viewer on 4096 tokens and four heads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
        made = LlamaForCausalLM(LlamaConfig(vocab_size=500, max_position_embeddings=4096, **sizes)).eval()
    words = spoken([f"word{i}" for i in range(500)])
    ids = torch.randint(0, 500, (1, 4096), generator=torch.Generator().manual_seed(0))
    view = interp.attention_view(interp.load(made, tokenizer=words), ids)
    return view.save(tmp_path_factory.mktemp("long") / "view.html")
