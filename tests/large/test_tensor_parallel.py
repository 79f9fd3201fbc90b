"""A model in two processes is the model in one: sites, edits of heads that live elsewhere, statistics, generation."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tiny_models import build

SCRIPT = Path(__file__).with_name("two_processes.py")
FAMILIES = ("llama", "qwen3", "gpt_neox", "gemma2")


def test_two_processes_are_one(tmp_path):
    folders = [tmp_path / name for name in FAMILIES]
    for folder in folders:
        build(folder.name).save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    root = {"PYTHONPATH": str(SCRIPT.parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), *map(str, folders)]
    processes = []
    for rank in ("0", "1"):
        environment = {**os.environ, **shared, **root, "RANK": rank, "LOCAL_RANK": rank}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    try:
        said = [p.communicate(timeout=300)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text[-3000:]
        assert text.count("2 processes, logits within") == len(FAMILIES), text
