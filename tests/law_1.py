"""Law 1, for the tests of the zoo: a cut loses nothing."""

import torch


def check_cuts(backbone, x):
    """Every cut of a backbone, on inputs x: its shape, and what lies above goes on to the bits of the whole, which are returned."""
    whole = backbone(x)
    for cut in backbone.cuts:
        codes = backbone.upto(cut)(x)
        before = codes.clone()
        assert codes.shape[1:] == backbone.code_shapes[cut]
        assert torch.equal(backbone.after(cut)(codes), whole), cut
        assert torch.equal(codes, before), f"the layers after {cut} write into the codes that they are given"
    assert backbone.pool(whole).shape == (len(x), backbone.num_features)
    return whole
