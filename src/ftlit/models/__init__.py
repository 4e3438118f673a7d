"""Backbones, heads, pooling, and exact rewrites of both."""
