"""Old names and their new ones. An error for an old name gives the new one, for this release; this module goes with the next."""

PUBLIC_NAMES = {  # of `ftlit`
    "Codes": "Features",
    "CodesAt": "FeatureBatch",
    "CodesData": "FeatureData",
    "SolvedHead": "FitProbeHead",
    "extract_codes": "extract_features",
}
OPTIONS = {  # of the command line and of config files: `group=option`, or the name of a value
    "head=solved": "head=linear_probe",
    "trainer=fsdp": "trainer=fsdp2",
    "probe.strengths": "probe.l2",
}
CLASSES = {
    **PUBLIC_NAMES,
    "Probing": "LayerProbes",
    "RateMonitor": "LrMonitor",
    "SolvedLinearHead": "LinearProbeHead",
    "Watch": "SweepCallback",
}  # that a `_target_` names
MODULES = {  # whose classes and functions a `_target_` names
    "backbone": "models.backbone",
    "cli.sweep_jobs": "cli.sweep.sweep_jobs",
    "head": "models.heads",
    "lit.caching": "lit.features.feature_data",
    "lit.datamodules": "lit.datamodules.image_sources",
    "lit.datamodules.feature_data": "lit.features.feature_data",
    "lit.finetuner": "lit.module",
    "lit.glyphs": "lit.datamodules.glyph_source",
    "lit.images": "lit.datamodules.image_data",
    "lit.pretrainer": "lit.tasks.layer_pretrainer",
    "lit.progress": "lit.callbacks.progress_bar",
    "lit.rate_monitor": "lit.callbacks.lr_monitor",
    "lit.resuming": "lit.callbacks.exact_resume",
    "lit.seeding": "lit.callbacks.seed_each_step",
    "lit.solving": "lit.callbacks.probe_head",
    "lit.staged_finetuning": "lit.stages.staged_finetuning",
    "lit.staging": "lit.stages.staged_finetuning",
    "lit.texts": "lit.datamodules.text_sources",
    "loss": "finetuning.losses",
    "lr_find": "finetuning.lr_range_test",
    "probing": "probes.layer_probes",
    "rates": "finetuning.lr_schedule",
    "recipes.sweeping": "cli.sweep.sweep_jobs",
    "schedule": "finetuning.presets",
    "transform": "data.transforms",
}
NAMES = {  # that left their module
    "lit.caching.images_only": "lit.datamodules.image_data.images_only",
    "lit.resuming.MetricsFile": "lit.callbacks.metrics_file.MetricsFile",
}


def new_path(path: str) -> str | None:
    """The dotted path that took the place of this one; `None` where it is not an old one of ftlit's.

    >>> new_path("ftlit.head.MLPHead"), new_path("torch.nn.Linear")
    ('ftlit.models.heads.MLPHead', None)
    """
    package, _, rest = path.partition(".")
    module, _, name = rest.rpartition(".")
    if package != "ftlit" or (module and module not in MODULES) or (not module and name not in PUBLIC_NAMES):
        return None
    if rest in NAMES:
        return f"ftlit.{NAMES[rest]}"
    return ".".join(filter(None, ("ftlit", MODULES.get(module), CLASSES.get(name, name))))
