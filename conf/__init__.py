"""The Hydra groups; Hydra finds them here as pkg://ftlit.conf."""
