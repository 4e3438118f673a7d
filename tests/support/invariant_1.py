"""Check of invariant 1 (a cut loses nothing) for the tests of the zoo."""

import torch


def check_cuts(backbone, x):
    """Check shape and exactness of every cut of a backbone on inputs x; return the features at the last cut."""
    whole = backbone(x)
    for cut in backbone.cuts:
        features = backbone.upto(cut)(x)
        before = features.clone()
        assert features.shape[1:] == backbone.feature_shapes[cut]
        assert torch.equal(backbone.after(cut)(features), whole), cut
        assert torch.equal(features, before), f"the layers after {cut} write into their inputs"
    assert backbone.pool(whole).shape == (len(x), backbone.num_features)
    return whole
