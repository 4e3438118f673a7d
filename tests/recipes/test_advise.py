"""`scenario=auto` with settings that the user gave: the advice adds none that contradicts them."""

import pytest
from hydra import compose

from ftlit.probes.advice import Advice
from ftlit.recipes.advise import fit_to_overrides
from ftlit.recipes.build_run import build
from ftlit.recipes.config.hydra_internals import initialize_hydra, use_hydra_config

DROPS_LAYERS = Advice("small_different", "layer3", reason=None)


@pytest.mark.parametrize(
    ("words", "cut", "cuts", "highest"),
    [
        (["head.cuts=[layer2,layer4]"], None, ("layer2", "layer4"), "layer4"),
        (["head.cuts=2"], "layer3", ("layer2", "layer3"), "layer3"),
        ([], "layer3", ("stem", "layer1", "layer2", "layer3"), "layer3"),
    ],
)
def test_given_layers_of_the_head_say_where_the_backbone_ends(words, cut, cuts, highest, tmp_path):
    with initialize_hydra():
        given = ["data.per_class=5", f"paths.run={tmp_path}", f"paths.cache={tmp_path}", *words]
        cfg = compose("train", given, return_hydra_config=True)
        with use_hydra_config(cfg):
            advice, advised = fit_to_overrides(cfg, None, DROPS_LAYERS)
            assert (advice.scenario, advised.backbone.cut) == ("small_different", cut)
            model = build(advised).model
    assert (model.head.cuts, model.backbone.cuts[-1]) == (cuts, highest)
