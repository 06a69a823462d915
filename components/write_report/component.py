"""KFP component: one page that tells the whole run."""

from kfp import dsl

from components.images import MODEL_IMAGE


@dsl.component(base_image=MODEL_IMAGE, install_kfp_package=False)
def write_report(
    validate_data: dsl.Input[dsl.Artifact],
    train_tokenizer: dsl.Input[dsl.Artifact],
    tokenize_corpus: dsl.Input[dsl.Artifact],
    pretrain: dsl.Input[dsl.Artifact],
    finetune_lora: dsl.Input[dsl.Artifact],
    convert_checkpoint: dsl.Input[dsl.Artifact],
    evaluate: dsl.Input[dsl.Artifact],
    register_model: dsl.Input[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Artifact],
    run_folder: str,
) -> None:
    """Draws a run's tables and pictures as one self-contained page.

    Args:
        validate_data: Summary of the stage of that name; the next seven likewise.
        train_tokenizer: Summary.
        tokenize_corpus: Summary.
        pretrain: Summary.
        finetune_lora: Summary.
        convert_checkpoint: Summary.
        evaluate: Summary.
        register_model: Summary.
        page: The page.
        summary: What this stage tells about itself (JSON).
        run_folder: Folder the local runner collects the outputs in, named on the page; empty on a cluster.
    """
    from modelcore.stages.write_report import write_report

    write_report(
        summaries=[
            validate_data.path,
            train_tokenizer.path,
            tokenize_corpus.path,
            pretrain.path,
            finetune_lora.path,
            convert_checkpoint.path,
            evaluate.path,
            register_model.path,
        ],
        out=page.path,
        run_folder=run_folder,
        summary=summary.path,
    )
