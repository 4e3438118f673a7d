"""Put all images of a data set into train, for the last training of a recipe that was chosen before."""

from ftlit.data.dataset import SPLITS, Collection
from ftlit.data.splitting.gathered import gathered


def all_in_train(collection: Collection) -> Collection:
    """The collection with the images of all splits in train, in their order; val and test are empty, and notes on them are left out."""
    parts = [collection.splits[split] for split in SPLITS]
    train = gathered(parts, [(number, place) for number, part in enumerate(parts) for place in range(len(part))])
    none = train.subset([])
    notes = [note for note in collection.notes if note not in collection.split_notes]
    return Collection({"train": train, "val": none, "test": none}, collection.class_names, collection.multilabel, notes)
