"""Hints of the doctor: the words to type, in Python or on the command line."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hints:
    """What to type where a warning of `examine` advises a change; the defaults are Python.

    Args:
        freeze_embeddings: freezes the embeddings too.
        without_pooler: takes the layer below the pooler as the top.
        input_spec: holds the normalisation.
        weights: loads weights.
        fitted_head: lets the head start as a fitted linear probe.
        trained_head: trains the head from random weights instead.
        own_fit: after `trained_head`: fits a linear probe by other means; empty where there are none.
        trained_before: how to say that the head has trained; empty where a program knows.
        restart: begins the learning-rate schedule again in each stage.
        begin: gives the epoch at which a stage begins.
        batchnorm: makes batch norms independent of the batch.
        sync_batchnorm: shares the statistics of batch norms among processes.
    """

    freeze_embeddings: str = "freeze_embeddings=True to the function of ftlit.finetuning.presets that makes the schedule"
    without_pooler: str = "load_bert(..., cut=-2)"
    input_spec: str = "the input_spec of the backbone"
    weights: str = "load_backbone(..., weights=...)"
    fitted_head: str = "FitProbeHead"
    trained_head: str = "leave FitProbeHead out of the callbacks"
    own_fit: str = ", or fit the head before training: head = fit_probe(extract_features(backbone, loader)).as_head()"
    trained_before: str = '; if it is trained already, give its linear layer the attribute origin = WeightsOrigin("custom", "my head")'
    restart: str = "Rates(..., restart=True)"
    begin: str = "Stage(epoch=...)"
    batchnorm: str = 'Stage(..., batchnorm="frozen_stats") or ftlit.batchnorm_to_affine'
    sync_batchnorm: str = "Trainer(sync_batchnorm=True)"


IN_PYTHON = Hints()
ON_COMMAND_LINE = Hints(
    freeze_embeddings="schedule.freeze_embeddings=true",
    without_pooler="backbone.cut=-2",
    input_spec="backbone.input_spec",
    weights="backbone.weights=...",
    fitted_head="head=linear_probe",
    trained_head="give head=linear, which is trained in gradient steps",
    own_fit="",
    trained_before="",
    restart="lr_scheduler.restart=true",
    begin="schedule.epoch or schedule.every",
    batchnorm="batchnorm=frozen_stats or batchnorm=affine",
    sync_batchnorm="trainer.sync_batchnorm=true",
)
