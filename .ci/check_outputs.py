"""Looks at what a pipeline run left behind: ``check_outputs.py runs/NAME``. Exits non-zero at the first thing wrong."""

import json
import subprocess
import sys
import time
from pathlib import Path

GIB = 1024  # MiB


def main(run: Path) -> None:
    summaries = {path.stem: json.loads(path.read_text()) for path in (run / "report" / "summaries").glob("*.json")}
    assert len(summaries) == 9, sorted(summaries)
    for name, summary in summaries.items():
        print(f"{name:<20}{summary['seconds']:8.1f} s {summary['peak_memory_mib']:8.0f} MiB")
        assert summary["peak_memory_mib"] <= GIB, f"{name} used more than 1 GiB"

    figures = json.loads((run / "report" / "evaluation" / "evaluation.json").read_text())
    print({key: value for key, value in figures.items() if isinstance(value, int | float)})
    # A model that learned nothing needs 8 bits a byte or more; a few steps take it under 4.
    assert 1.0 < figures["pretrained_bits_per_byte"] < 4.0
    assert 1.0 < figures["bits_per_byte"] < 4.0
    assert 1.5 < figures["bzip2_bits_per_byte"] < 3.5
    assert figures["expected_calibration_error"] < 0.2
    assert figures["last_word_items"] == figures["multiple_choice_items"] == 200
    assert figures["multiple_choice_accuracy"] > 0.25 - 2 * figures["multiple_choice_standard_error"]

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export = run / "export"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(export), AutoTokenizer.from_pretrained(export)
    text = Path("examples/austen/heldout/sense_and_sensibility.txt").read_text(encoding="utf-8")[1000:2000]
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :64]
    loss = float(model(ids, labels=ids).loss)
    clueless = torch.tensor(float(len(tokenizer))).log()
    assert loss < 0.8 * clueless, f"transformers finds a loss of {loss}: nothing learned"

    command = [".venv/bin/modelcore", "generate", "--model", str(export), "--prompt", "She was", "--max-tokens", "1"]
    started = time.monotonic()
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    print(f"first token of {said!r} after {time.monotonic() - started:.1f} s")
    assert said.startswith("She was")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
