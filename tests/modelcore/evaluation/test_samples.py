"""Samples ask two models the same, in the form that tuning taught, and cannot break out of their document."""

from modelcore.evaluation.samples import Sample, as_markdown, draw_samples


class Echo:
    """Stands for a model: says back what it was asked, with the random numbers' seed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def fits(self, prompt):
        return len(prompt) < 20

    def complete(self, prompt, sampling, max_tokens):
        from modelcore.inference import Completion

        return Completion(f"{self.name} {prompt} {sampling.seed} {max_tokens}", "eos")


def test_both_models_get_the_same_prompt_and_seed():
    samples = draw_samples(Echo("old"), Echo("new"), ["Hello."], seed=7, max_tokens=5)
    asked = ' "Hello."\n\n"'
    assert samples == [Sample("Hello.", f"old {asked} 7 5", f"new {asked} 7 5")]


def test_a_prompt_that_fits_no_context_is_left_out():
    assert draw_samples(Echo("old"), Echo("new"), ["Hello." * 9]) == []


def test_a_models_text_stays_a_code_block():
    document = as_markdown([Sample("Hello.", "# not a title\n\n<b>x</b>", "")])
    assert "\n    # not a title\n    \n    <b>x</b>\n" in document
    assert document.startswith("# Samples before and after tuning\n\n## Hello.\n")
