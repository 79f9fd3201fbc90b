import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A word tokenizer that was loaded from disk, as a TransformerLens bridge insists."""
    import transformers
    from tiny_models import D_VOCAB
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(D_VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "w0", "pad_token": "w1", "bos_token": "w2", "eos_token": "w2"}
    folder = tmp_path_factory.mktemp("tokenizer")
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def bridge_of(tokenizer):
    """Function that boots a TransformerLens bridge of a tiny model by name."""
    from tiny_models import build
    from transformer_lens.model_bridge import TransformerBridge

    def boot(name):
        return TransformerBridge.boot_transformers(
            "local/none", hf_model=build(name), tokenizer=tokenizer, device="cpu"
        )

    return boot


def pytest_collectstart():
    """Make agreement.py importable under that name; --import-mode=importlib would not find it."""
    if "agreement" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location("agreement", Path(__file__).with_name("agreement.py"))
    sys.modules["agreement"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
