"""Which packages the library needs to be imported: on a bare GPU machine there is little more than torch."""

import subprocess
import sys

import pytest

# Whatever else is installed is as good as missing, tqdm too, which torch uses where it finds it.
IMPORT_ON_A_BARE_MACHINE = """
import sys
from importlib.metadata import packages_distributions

import numpy, safetensors.torch, torch

loaded = {name.partition(".")[0] for name in sys.modules} - {"tqdm"}
missing = packages_distributions().keys() - loaded - {"modelcore"}
assert {"tqdm", "yaml", "psutil", "sentencepiece", "tokenizers", "transformers", "mlflow", "pandas"} <= missing, missing
sys.modules |= dict.fromkeys(missing)
import MODULE
"""


@pytest.mark.parametrize(
    "module",
    ["modelcore.gptx", "modelcore.training", "modelcore.inference", "modelcore.adapters", "modelcore.data.loader"],
)
def test_torch_numpy_and_safetensors_are_enough_to_import(module):
    code = IMPORT_ON_A_BARE_MACHINE.replace("MODULE", module)
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr


def test_a_report_is_written_without_torch_and_mlflow():
    code = (
        "import sys, modelcore.stages.write_report\n"
        "from modelcore.evaluation.report import render_report, render_table\n"
        "render_report([]), render_table([])\n"
        "sys.exit(bool({'torch', 'mlflow', 'pandas'} & sys.modules.keys()))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_reading_batches_needs_nothing_of_training():
    code = "import sys, modelcore.data.loader; sys.exit('modelcore.training' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_stages_of_the_data_image_need_no_torch(tmp_path):
    text = "".join(f"Line {line} of a text in which nothing is said twice.\n" for line in range(60))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    code = """
import sys
from pathlib import Path


class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, NoTorch())  # a None in sys.modules would be taken for torch by SciPy
import great_expectations, modelcore.stages.validate_data
from modelcore.stages.tokenize_corpus import tokenize_corpus
from modelcore.stages.train_tokenizer import train_tokenizer

here = Path(sys.argv[1])
train_tokenizer(corpus=here / "text.txt", out=here / "tokenizer", vocab_size=290)
tokenize_corpus(corpus=here / "text.txt", heldout=here / "text.txt", tokenizer=here / "tokenizer", out=here / "tokens")
"""
    child = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert (tmp_path / "tokens" / "meta.json").is_file()
