"""What every recipe needs: console, artifacts, resuming, processes."""
