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
        batchnorm: makes batch norms independent of the batch.
        sync_batchnorm: shares the statistics of batch norms among processes.
    """

    freeze_embeddings: str = "freeze_embeddings=True to the function of ftlit.finetuning.presets that makes the schedule"
    without_pooler: str = "load_bert(..., cut=-2)"
    input_spec: str = "the input_spec of the backbone"
    weights: str = "load_backbone(..., weights=...)"
    fitted_head: str = "FitProbeHead"
    batchnorm: str = 'Stage(..., batchnorm="frozen_stats") or ftlit.batchnorm_to_affine'
    sync_batchnorm: str = "Trainer(sync_batchnorm=True)"


IN_PYTHON = Hints()
ON_COMMAND_LINE = Hints(
    freeze_embeddings="schedule.freeze_embeddings=true",
    without_pooler="backbone.cut=-2",
    input_spec="backbone.input_spec",
    weights="backbone.weights=...",
    fitted_head="head=linear_probe",
    batchnorm="batchnorm=frozen_stats or batchnorm=affine",
    sync_batchnorm="trainer.sync_batchnorm=true",
)
