"""KFP component: convert the tuned model to the format the rest of the world loads."""

from kfp import dsl

from components.images import MODEL_IMAGE


@dsl.component(base_image=MODEL_IMAGE, install_kfp_package=False)
def convert_checkpoint(
    checkpoint: dsl.Input[dsl.Model],
    adapter: dsl.Input[dsl.Model],
    export: dsl.Output[dsl.Model],
    summary: dsl.Output[dsl.Artifact],
) -> None:
    """Merges the adapter into the model and writes a Hugging Face folder, then loads it and compares logits.

    Args:
        checkpoint: The pretrained model.
        adapter: Its LoRA adapter.
        export: Folder that AutoModelForCausalLM and AutoTokenizer load.
        summary: What the stage tells about itself (JSON).
    """
    from modelcore.stages.convert_checkpoint import convert_checkpoint

    convert_checkpoint(
        checkpoint=checkpoint.path,
        adapter=adapter.path,
        out=export.path,
        to="huggingface",
        summary=summary.path,
    )
