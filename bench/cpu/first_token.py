"""From nothing to a first token: a fresh process that imports, loads a small model and makes one token."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.benchmark import Options, main
from bench.measure import alternate
from bench.row import Row

PEER = "Hugging Face"

OURS = """
from pathlib import Path
from modelcore.inference import SamplingConfig, generate
from modelcore.models import load_model
model = load_model(Path(FOLDER))
generate(model, [[1, 2, 3]], SamplingConfig(temperature=0), max_tokens=1)
"""

THEIRS = """
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(FOLDER)
ids = torch.tensor([[1, 2, 3]])
model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=1, pad_token_id=0)
"""


def rows(options: Options) -> Iterator[Row]:
    """Seconds from the process's start to its end, for the import alone and for a first token."""
    runs, warmup = (1, 0) if options.small else (5, 1)
    with tempfile.TemporaryDirectory() as folder:
        native, exported = Path(folder) / "native", Path(folder) / "exported"
        write_models(native, exported, options)
        for metric, ours, theirs in (
            ("import", "import modelcore.inference", "from transformers import AutoModelForCausalLM"),
            ("import, load and first token", _with_folder(OURS, native), _with_folder(THEIRS, exported)),
        ):
            seconds = alternate({"ours": _process(ours), PEER: _process(theirs)}, runs=runs, warmup=warmup)
            yield Row(
                "first_token llama-nano, fresh process", metric, seconds["ours"].median, "s", PEER, seconds[PEER].median
            )


def write_models(native: Path, exported: Path, options: Options) -> None:
    """The default model as either side keeps one."""
    from bench.cpu.training import make_model, our_settings
    from modelcore.convert.huggingface import write_huggingface
    from modelcore.models import save_model

    model = make_model(our_settings(Options(small=options.small)))
    for folder in (native, exported):
        folder.mkdir()
    save_model(native, model, None)
    write_huggingface(exported, model, None)


def _with_folder(program: str, folder: Path) -> str:
    return program.replace("FOLDER", repr(str(folder)))


def _process(program: str) -> Callable[[], float]:
    """What runs a program in a fresh process, and gives the seconds it took in all."""

    def run() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, capture_output=True)  # noqa: S603
        return time.perf_counter() - start

    return run


if __name__ == "__main__":
    main(rows)
