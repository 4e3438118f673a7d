"""Find the layer whose features separate the classes best, and cut the network there: python cut_and_probe.py"""

import torch

from ftlit import extract_features, fit_probe, load_backbone
from ftlit.lit.datamodules.image_sources import digits_data

if __name__ == "__main__":
    backbone = load_backbone("glyph")
    data = digits_data(backbone.input_spec, per_class=10)
    train = extract_features(backbone, data.train_dataloader(), backbone.cuts)  # one pass for all cuts
    val = extract_features(backbone, data.val_dataloader(), backbone.cuts)
    accuracy = {}
    for cut in backbone.cuts:
        probe = fit_probe(train, cut=cut)  # L2 penalty chosen by cross-validation on the training images
        accuracy[cut] = probe.accuracy(val)
        print(f"{cut:8} validation accuracy {accuracy[cut]:.3f}   L2 penalty {probe.l2:.1e} ({probe.sklearn})")
    best = max(accuracy, key=accuracy.__getitem__)
    cut_off, head = backbone.upto(best).eval(), fit_probe(train, cut=best).as_head()  # the layers are shared with `backbone`
    print(f"cut after {best}: layers {', '.join(cut_off.cuts)}; {cut_off.num_features} features")
    images, labels = next(iter(data.val_dataloader()))
    with torch.no_grad():
        logits = head(cut_off.pool(cut_off(images)))
    print(f"first batch: {(logits.argmax(dim=1) == labels).float().mean():.3f} correct")
