"""Fine-tune a pretrained network: `python train.py backbone=resnet50 scenario=small_similar`, `python train.py --help`."""

try:
    from ftlit.cli.train import main
except KeyboardInterrupt:  # while packages are imported
    raise SystemExit(130) from None

if __name__ == "__main__":
    main()
