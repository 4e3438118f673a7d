"""How the solver finds an optimum."""
