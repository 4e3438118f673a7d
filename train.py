"""Fine-tune a pretrained network: `python train.py backbone=resnet50 scenario=small_similar`, `python train.py --help`."""

from ftlit.cli.train import main

if __name__ == "__main__":
    main()
