"""The program `ftlit`, also as `python -m ftlit`."""

try:
    from ftlit.cli.main import main
except KeyboardInterrupt:  # while modules are imported
    raise SystemExit(130) from None

if __name__ == "__main__":
    main()
