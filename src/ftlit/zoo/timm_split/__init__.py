"""Networks of timm, taken apart into named layers by what one forward pass does."""
