"""The program `ftlit`, also as `python -m ftlit`."""

import sys

try:
    from ftlit.cli.main import main
except KeyboardInterrupt:  # while modules are imported
    print("ftlit: interrupted", file=sys.stderr)
    raise SystemExit(130) from None

if __name__ == "__main__":
    main()
