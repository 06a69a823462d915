"""KFP component: put the model into the registry, and the champion's crown where it belongs."""

from kfp import dsl

from components.images import MODEL_IMAGE


@dsl.component(base_image=MODEL_IMAGE, install_kfp_package=False)
def register_model(
    export: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    registration: dsl.Output[dsl.Artifact],
    summary: dsl.Output[dsl.Artifact],
    model_name: str,
) -> None:
    """Registers the exported model in MLflow: @candidate always, @champion if it beats the champion.

    Args:
        export: The Hugging Face folder.
        evaluation: From evaluate.
        registration: The version made and the gate's decision (JSON).
        summary: What the stage tells about itself (JSON).
        model_name: Name in MLflow's model registry.
    """
    from modelcore.stages.register_model import register_model

    register_model(
        export=export.path,
        evaluation=evaluation.path,
        out=registration.path,
        model_name=model_name,
        summary=summary.path,
    )
