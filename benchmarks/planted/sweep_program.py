"""A small training program with Lightning and Hydra, as a user would write it."""

import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from lightning.pytorch import Trainer
from omegaconf import DictConfig
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))
from planted.nets import BATCH, Net, images, linear_head, plain
from planted.note import Note
from planted.peers import PEERS

ConfigStore.instance().store("program", {"devices": 1, "seed": 0, "peer": "Lightning"})


@hydra.main(version_base="1.3", config_path=None, config_name="program")
def main(cfg: DictConfig) -> None:
    """Train."""
    peer = PEERS[cfg.peer]()
    net = Net(plain(), linear_head(), peer.optimizer)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        strategy="ddp",
        devices=cfg.devices,
        callbacks=[*peer.callbacks(net), Note()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataLoader(images(), batch_size=BATCH // cfg.devices)  # Lightning divides it among the processes
    trainer.fit(net, data, data)


if __name__ == "__main__":
    main()
