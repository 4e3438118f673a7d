"""Names of other programs for options of this one: the words that take their place on the command line."""

import re
from pathlib import Path

from ftlit.errors import UserError
from ftlit.formatting import shell_word

RATE = ("lr", "learningrate", "baselr", "maxlr", "lrate")
AUGMENTATION = ("aug", "augmentation", "augmentations", "autoaugment", "transforms")
DEVICE, GPUS, HALF = ("device", "accelerator", "gpu"), ("gpus", "ngpus", "numgpus"), ("amp", "fp16", "mixedprecision")
BY_VALUE = [  # names as in OPTIONS, a pattern of the value, and the words that take their place for it
    (RATE, "auto", "recipe=lr_find"),
    (DEVICE, "(cuda|gpu)(:?0)?|0|true", "trainer=gpu"),
    (DEVICE, "(?:cuda:|gpu:)?([0-9]+)", r"trainer=gpu 'trainer.devices=[\1]'"),
    (DEVICE, "cpu|false", "trainer=cpu"),
    (GPUS, "0|none|null|false", "trainer=cpu"),
    (GPUS, "true", "trainer=gpu"),
    (HALF, "false|no", "trainer.precision=32-true"),
    (HALF, "bf16|bfloat16", "trainer.precision=bf16-mixed"),
    (("precision",), "(fp|float)?32", "trainer.precision=32-true"),
    (("precision",), "(fp|float)?16|half", "trainer.precision=16-mixed"),
    (("precision",), "bf16|bfloat16", "trainer.precision=bf16-mixed"),
    (("precision",), "(fp|float)?64|double", "trainer.precision=64-true"),
    (AUGMENTATION, "none|photo|trivial_augment|rand_augment", r"data.augment=\g<0>"),
]
VALUE = "{value}"  # stands for the value that was given
OPTIONS = {  # the last part of a name, in lower case and without `_` and `-` -> the words to give
    **dict.fromkeys(("epochs", "epoch", "numepochs", "nepochs", "nepoch", "maxepochs", "trainepochs"), "trainer.max_epochs={value}"),
    **dict.fromkeys(("steps", "maxsteps", "iterations", "maxiter", "maxiters", "numsteps"), "+trainer.max_steps={value}"),
    **dict.fromkeys(RATE, "optimizer.lr={value}"),
    **dict.fromkeys(("wd", "weightdecay"), "optimizer.weight_decay={value}"),
    "momentum": "optimizer=sgd optimizer.momentum={value}",
    **dict.fromkeys(("optim", "opt"), "optimizer={value}"),
    **dict.fromkeys(("scheduler", "sched", "lrschedule", "lrpolicy"), "lr_scheduler={value}"),
    **dict.fromkeys(("warmup", "warmupepochs", "warmupratio", "warmupsteps"), "lr_scheduler=cosine_warmup lr_scheduler.warmup=0.1"),
    **dict.fromkeys(
        ("imagesize", "imgsize", "imgsz", "size", "inputsize", "resolution", "cropsize", "imgdim"), "backbone.input_spec.size={value}"
    ),
    **dict.fromkeys(("mean", "std", "interpolation"), "backbone.input_spec.{name}={value}"),
    **dict.fromkeys(("inchans", "inchannels", "channels", "numchannels", "nchannels", "bands", "numbands"), "backbone.in_chans={value}"),
    **dict.fromkeys(("batch", "batchsize", "bs", "trainbatchsize"), "data.batch_size={value}"),
    **dict.fromkeys(("workers", "numworkers", "nworkers", "nw"), "data.num_workers={value}"),
    **dict.fromkeys(("outputdir", "outdir", "output", "out", "savedir", "rundir", "logdir", "workdir"), "hydra.run.dir={value}"),
    **dict.fromkeys(("cachedir", "cachefolder"), "paths.cache={value}"),
    **dict.fromkeys(("model", "modelname", "arch", "architecture", "network", "net", "encoder"), "backbone={value}"),
    **dict.fromkeys(("weights", "checkpoint", "ckpt", "ckptpath", "checkpointpath", "weightspath"), "backbone.weights={value}"),
    **dict.fromkeys(("ema", "useema", "checkpointkey"), "backbone.weights_key=model_ema"),
    **dict.fromkeys(DEVICE, "trainer.accelerator={value}"),
    **dict.fromkeys(GPUS, "trainer=gpu trainer.devices={value}"),
    **dict.fromkeys(HALF, "trainer.precision=16-mixed"),
    "bf16": "trainer.precision=bf16-mixed",
    "precision": "trainer.precision={value}",
    **dict.fromkeys(("clip", "clipgrad", "gradclip", "maxgradnorm", "gradientclip"), "trainer.gradient_clip_val={value}"),
    **dict.fromkeys(("accumulate", "gradientaccumulation", "gradientaccumulationsteps"), "trainer.accumulate_grad_batches={value}"),
    **dict.fromkeys(("freeze", "freezebackbone", "frozen", "featureextraction"), "schedule=head_only"),
    **dict.fromkeys(AUGMENTATION, "data.augment=trivial_augment"),
    **dict.fromkeys(("mixup", "cutmix"), "data.mix={name}"),
    "views": "data.views={value}",
    **dict.fromkeys(("valsplit", "valsize", "validationsplit", "valfraction", "valratio"), "data.val_fraction={value}"),
    **dict.fromkeys(("testsplit", "testsize", "testfraction", "testratio"), "data.test_fraction={value}"),
    **dict.fromkeys(("smoothing", "labelsmoothing"), "loss.label_smoothing={value}"),
    **dict.fromkeys(("classweight", "classweights"), "loss.class_weights={value}"),
    **dict.fromkeys(("criterion", "lossfn", "lossfunction"), "loss={value}"),
    **dict.fromkeys(("dropout", "droprate"), "head=mlp head.dropout={value}"),
    **dict.fromkeys(("hidden", "hiddensize", "hiddendim"), "head=mlp head.hidden={value}"),
    **dict.fromkeys(("randomseed", "randomstate", "rngseed"), "seed={value}"),
    **dict.fromkeys(("task", "mode"), "recipe={value}"),
    **dict.fromkeys(("finetune", "finetuning", "unfreeze", "fulltraining"), "scenario=large_similar"),
    **dict.fromkeys(("name", "runname", "expname", "experimentname", "project"), "hydra.run.dir=runs/{value}"),
}
PATHS = {
    *("dataset", "datadir", "datapath", "dataroot", "datasetpath", "path", "root", "dir", "folder", "csv"),
    *("images", "imagedir", "traindir"),
}
PRETRAINED = {"true": "backbone.weights=default", "false": "backbone.weights=null"}
SPLIT_FOLDERS = {  # the same, for images of a split in a place of their own -> the folder to put them into
    **dict.fromkeys(("test", "testdir", "testroot", "testpath", "testfolder", "testdata", "testset"), "test"),
    **dict.fromkeys(("val", "valdir", "valroot", "valpath", "valfolder", "valdata", "valset", "validation", "validationdir"), "val"),
}
RESUME = {"resumefrom", "resumefromcheckpoint"}
STOPPING = "+callbacks.early_stopping"
EARLY_STOPPING = {"patience", "earlystopping", "earlystop", "earlystoppingpatience"}
OF_DATA = {"numclasses", "nclasses", "nclass", "classes", "numlabels", "outfeatures"}
CHOICES = {  # group=option -> the words to give
    **dict.fromkeys(("data=imagefolder", "data=image_folder", "data=images", "data=custom"), "data=folder data.root=..."),
    **dict.fromkeys(("optimizer=adam", "optimizer=Adam", "optimizer=AdamW"), "optimizer=adamw"),
    "optimizer=SGD": "optimizer=sgd",
    **dict.fromkeys(("trainer=cuda", "trainer=single_gpu"), "trainer=gpu"),
    **dict.fromkeys(("loss=ce", "loss=crossentropy", "loss=xent", "loss=nll"), "loss=cross_entropy"),
    **dict.fromkeys(("loss=binary_cross_entropy", "loss=bce_with_logits", "loss=multilabel"), "loss=bce"),
    **dict.fromkeys(("head=fc", "head=classifier", "head=dense"), "head=linear"),
    **dict.fromkeys(("head=probe", "head=logistic", "head=logreg"), "head=linear_probe"),
    **dict.fromkeys(("logger=tb", "logger=tensor_board"), "logger=tensorboard"),
    **dict.fromkeys(("logger=none", "logger=false"), "logger=csv"),
    **dict.fromkeys(("schedule=frozen", "schedule=freeze", "schedule=linear_probe", "schedule=feature_extraction"), "schedule=head_only"),
    **dict.fromkeys(("schedule=full", "schedule=finetune", "schedule=fine_tune", "schedule=none"), "schedule=all_at_once"),
    **dict.fromkeys(("lr_scheduler=none", "lr_scheduler=const", "lr_scheduler=fixed"), "lr_scheduler=constant"),
    **dict.fromkeys(("scenario=none", "scenario=off", "scenario=false"), "~scenario"),
    **dict.fromkeys(("cache=false", "cache=off", "cache=no"), "cache=none"),
    "cache=views": "data.views=4",
}


def synonym(name: str, value: object) -> UserError | None:
    """The error for an option by a name of another program, with the words to give; `None` where the name is not known.

    >>> print(synonym("epochs", 20))
    there is no option 'epochs': give trainer.max_epochs=20
    """
    plain = name.rpartition(".")[2].lower().replace("_", "").replace("-", "")
    if plain in OF_DATA:
        return UserError(f"there is no option {name!r}: the number of classes comes from the data; leave this option out")
    if (split := SPLIT_FOLDERS.get(plain)) and name.rpartition(".")[0] in ("", "data"):
        places = f"put the {split} images into data.root/{split}/CLASS and the training images into data.root/train/CLASS"
        return UserError(f"there is no option {name!r}: {places}, or use data=csv with a column named split")
    text = {True: "true", False: "false", None: "null"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)
    words = _words(plain, text)
    if words is None or f" {words}".startswith(f" {name}="):
        return None
    return UserError(f"there is no option {name!r}: give {words}")


def chosen_synonym(group: str, option: str) -> UserError | None:
    """The error for an option of a group by another name, or a path in its place; `None` where it is not known."""
    words = CHOICES.get(f"{group}={option}") or _published(group, option)
    return UserError(f"{group} has no option {option!r}: give {words}") if words else None


def _words(plain: str, value: str) -> str | None:
    if plain == "pretrained":
        return PRETRAINED.get(value.lower(), f"backbone.weights={value}")
    if plain in PATHS:
        return _data(value)
    if plain in RESUME:
        return f"resume=true {shell_word(f'hydra.run.dir={run_of(value)}')}"
    if plain in EARLY_STOPPING and value.lower() != "false":
        patience = f"{STOPPING}.patience={value}" if value.isdecimal() else ""
        return f"{STOPPING}._target_=lightning.pytorch.callbacks.EarlyStopping {STOPPING}.monitor=val/loss {patience}".strip()
    for names, pattern, words in BY_VALUE:
        if plain in names and (found := re.fullmatch(pattern, value.lower())):
            return found.expand(words)
    template = OPTIONS.get(plain)
    if template is None or (value.lower() == "false" and VALUE not in template):
        return None
    return " ".join(shell_word(word.replace(VALUE, value).replace("{name}", plain)) for word in template.split(" "))


def run_of(path: str) -> str:
    """The folder of the run of a checkpoint; any other path as it is."""
    parts = Path(path).parts
    return str(Path(*parts[:-2])) if path.endswith(".ckpt") and parts[-2:-1] == ("checkpoints",) and len(parts) > 2 else path


def _data(value: str) -> str:
    """The data of a path, or of a data set by its name."""
    if value.lower().endswith(".csv"):
        return f"data=csv {shell_word(f'data.csv={value}')}"
    return _published("data", value) or f"data=folder {shell_word(f'data.root={value}')}"


def _published(group: str, option: str) -> str | None:
    """Words for a data set of torchvision, a folder or file of the user, or a network of timm."""
    if group == "data":
        from torchvision import datasets  # here: only this error needs it

        names = {name.lower(): name for name in datasets.__all__}
        if name := names.get(option.lower().replace("-", "").replace("_", "")):
            return f"data=torchvision data.name={name} data.download=true"
        if "/" in option or Path(option).exists():
            return _data(option) if option.lower().endswith(".csv") else f"data=folder {shell_word(f'data.root={option}')}"
    if group == "backbone":
        name = None if Path(option).is_file() else _name_in_timm(option)
        if name:
            return f"backbone=timm backbone.name={name}"
        if Path(option).is_file() or "/" in option:
            return f"{shell_word(f'backbone.weights={option}')} and backbone=..., the network that has these weights"
    return None


def _name_in_timm(option: str) -> str | None:
    """The name of a network of timm, which may be that of its folder on the hub (`timm/resnet50.a1_in1k`)."""
    name = option.removeprefix("timm/")
    try:
        import timm
    except ImportError:
        return None
    return name if timm.is_model(name.partition(".")[0]) else None
