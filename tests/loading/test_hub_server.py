"""Checkpoints on the hub, as it answers: ids, revisions, shards, what is missing, gated or cut, and the cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest
import torch
from hub_server import Repository
from tiny_models import build

HERE = Path(__file__).parent
COMMITS = {"main": "a" * 40, "dev": "b" * 40, "v1": "c" * 40}
CASES = {
    "id": {"id": "org/tiny"},
    "branch": {"id": "org/tiny", "revision": "dev"},
    "tag": {"id": "org/tiny", "revision": "v1"},
    "commit": {"id": "org/tiny", "revision": "b" * 40},
    "shards": {"id": "org/shards"},
    "no weights": {"id": "org/empty"},
    "no config": {"id": "org/bare"},
    "eight bits": {"id": "org/int8"},
    "gated": {"id": "org/gated"},
    "forbidden": {"id": "org/forbidden"},
    "nowhere": {"id": "org/nonesuch"},
    "no revision": {"id": "org/tiny", "revision": "nonesuch"},
    "cut": {"id": "org/cut"},
    "offline": {"id": "org/tiny"},
    "offline, not cached": {"id": "org/other"},
}


def logit(seed: int) -> float:
    module = build("llama", seed=seed)
    with torch.no_grad():
        return float(module(torch.tensor([[5, 6, 7]])).logits[0, -1, 3])


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    for seed, name in enumerate(COMMITS):
        build("llama", seed=seed).save_pretrained(root / name)
    build("llama", seed=7).save_pretrained(root / "shards", max_shard_size="40KB")
    for name in ("empty", "bare", "int8"):
        shutil.copytree(root / "main", root / name)
    (root / "empty" / "model.safetensors").unlink()
    (root / "bare" / "config.json").unlink()
    eight_bits(root / "int8" / "model.safetensors")
    commits = {name: (commit, root / name) for name, commit in COMMITS.items()}
    one = {name: Repository({"main": ("d" * 40, root / name)}) for name in ("shards", "empty", "bare", "int8")}
    repositories = {
        "org/tiny": Repository(commits | {commit: (commit, root / name) for name, commit in COMMITS.items()}),
        **{f"org/{name}": repository for name, repository in one.items()},
        "org/gated": Repository(status=401, error="GatedRepo"),
        "org/forbidden": Repository(status=403, error="GatedRepo"),
        "org/cut": Repository({"main": ("e" * 40, root / "main")}, cut="model.safetensors"),
    }
    for name in ("org/shards", "org/empty", "org/bare", "org/int8", "org/cut"):
        commit, folder = repositories[name].commits["main"]
        repositories[name].commits[commit] = (commit, folder)
    with hub_server.serving(repositories) as address:
        here = {"HF_ENDPOINT": address, "HF_HOME": str(root / "cache"), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
        quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
        run = subprocess.run(
            [sys.executable, str(HERE / "hub_server.py"), json.dumps(CASES)],
            env={**os.environ, **here, **quiet},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def eight_bits(path: Path) -> None:
    """A weight of integers, without the scales that would make numbers of them."""
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    name = next(n for n in weights if "q_proj" in n)
    weights[name] = (weights[name] * 10).to(torch.int8)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("case", "seed", "commit"),
    [
        ("id", 0, "a" * 40),
        ("branch", 1, "b" * 40),
        ("tag", 2, "c" * 40),
        ("commit", 1, "b" * 40),
        ("shards", 7, "d" * 40),
        ("offline", 0, "a" * 40),
    ],
)
def test_what_is_there_is_loaded_and_its_commit_kept(outcomes, case, seed, commit):
    found = outcomes[case]
    assert found.get("commit") == commit, found
    assert found["logit"] == pytest.approx(logit(seed), rel=1e-4)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no weights", "org/empty.*(no file named|does not appear|no weights|safetensors)"),
        ("no config", "cannot read the config of 'org/bare'"),
        ("eight bits", "is I8, and the configuration has no quantization_config"),
        ("gated", "'org/gated' is gated"),
        ("forbidden", "'org/forbidden' is gated"),
        ("nowhere", "'org/nonesuch'.*(not found|is not|no such)"),
        ("no revision", "'org/tiny' has no revision 'nonesuch'"),
        ("cut", "'org/cut'.*connection"),
        ("offline, not cached", "'org/other'.*(offline|cache)"),
    ],
)
def test_what_is_not_there_is_one_clear_line(outcomes, case, message):
    import re

    found = outcomes[case]
    assert found.get("error") == "ModelLoadError", found
    assert "\n" not in found["message"]
    assert len(found["message"]) < 500
    assert re.search(message, found["message"], re.IGNORECASE), found["message"]
